use fs_err as fs;

use super::*;
use crate::{PromptTemplates, PromptText};

fn compile(source: &str) -> Result<ChatTemplate> {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::new(PathBuf::from("m/chat_template.jinja"), source, special)
}

fn render(source: &str) -> Result<String> {
    let messages = [
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", " Hi\n"),
    ];
    compile(source)?.render(&messages, &ChatOptions::default())
}

fn failure(source: &str) -> String {
    render(source).unwrap_err().to_string()
}

#[test]
fn a_folder_is_read_as_transformers_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, content: &[u8]| fs::write(directory.path().join(name), content).unwrap();
    let read = || ChatTemplate::from_dir(directory.path());
    let text = |template: &ChatTemplate| template.render(&[], &ChatOptions::default()).unwrap();

    assert!(matches!(read(), Err(Error::NoChatTemplate { .. })));
    write(CONFIG_FILE, br#"{"bos_token": null}"#);
    assert!(matches!(read(), Err(Error::NoChatTemplate { .. })));
    write(
        CONFIG_FILE,
        br#"{"chat_template": "config {{ bos_token }}{{ eos_token }}{{ pad_token }}", "bos_token": {"content": "<s>"},
            "eos_token": "</s>", "pad_token": null}"#,
    );
    assert_eq!(text(&read().unwrap()), "config <s></s>");
    write(
        CONFIG_FILE,
        br#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "talk"}]}"#,
    );
    assert_eq!(text(&read().unwrap()), "talk");
    write(TEMPLATE_FILE, b"file\n");
    let template = read().unwrap();
    assert_eq!(text(&template), "file");
    assert_eq!(template.file(), directory.path().join(TEMPLATE_FILE));
}

#[test]
fn what_is_no_template_is_named_with_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, content: &[u8]| fs::write(directory.path().join(name), content).unwrap();
    let failure = || {
        ChatTemplate::from_dir(directory.path())
            .unwrap_err()
            .to_string()
    };
    for (config, reason) in [
        ("{", "EOF"),
        (r#"{"chat_template": 3}"#, "neither a text nor a list"),
        (r#"{"chat_template": []}"#, "without one named `default`"),
        (r#"{"chat_template": "{% if %}"}"#, "syntax error"),
    ] {
        write(CONFIG_FILE, config.as_bytes());
        assert!(failure().contains(CONFIG_FILE), "{}", failure());
        assert!(failure().contains(reason), "{}", failure());
    }
    write(CONFIG_FILE, b"{}");
    write(TEMPLATE_FILE, b"\xff");
    assert!(failure().contains("not valid UTF-8"), "{}", failure());
    write(TEMPLATE_FILE, &vec![b'a'; MAX_TEMPLATE_BYTES + 1]);
    assert!(failure().contains("more than"), "{}", failure());
}

#[test]
fn a_template_may_refuse_messages() {
    let text = failure("{{ raise_exception('No system message, please.') }}");
    assert!(text.contains("`m/chat_template.jinja`"), "{text}");
    assert!(text.contains("No system message, please."), "{text}");
}

#[test]
fn there_is_no_clock() {
    let guarded =
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}";
    assert_eq!(render(guarded).unwrap(), "26 Jul 2024");
    let text = failure("{{ strftime_now('%d %b %Y') }}");
    assert!(text.contains("depends on the day"), "{text}");
}

#[test]
fn steps_and_output_are_bounded() {
    let endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    assert!(failure(endless).contains("steps"), "{}", failure(endless));
    let large = "{% for i in range(1000) %}{{ 'x' * 1000000 }}{% endfor %}";
    assert!(failure(large).contains("bytes"), "{}", failure(large));
    let deep = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    failure(deep);
}

#[test]
fn a_panic_of_the_engine_is_an_error() {
    let text = failure("{{ ''[::-1] }}");
    assert!(text.contains("`m/chat_template.jinja`"), "{text}");
    assert!(text.contains("panicked"), "{text}");
}

#[test]
fn other_files_are_out_of_reach() {
    for source in [
        "{% include 'tokenizer_config.json' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends 'a' %}",
    ] {
        failure(source);
    }
}

#[test]
fn variables_come_before_special_tokens_of_their_name() {
    let template = compile("{{ bos_token }} {{ enable_thinking }} {{ messages|length }}").unwrap();
    let mut options = ChatOptions::default();
    options.variables.extend(
        [("bos_token", "<b>"), ("messages", "none")]
            .map(|(name, value)| (name.to_owned(), value.into())),
    );
    assert_eq!(template.render(&[], &options).unwrap(), "<b>  0");
}

fn prompts(chat: ChatSettings) -> PromptTemplates {
    let text = PromptText {
        organizer: "Plan: {query}\n".to_owned(),
        worker: "Do: {sub_query}\n".to_owned(),
        query: "{numbers}".to_owned(),
    };
    PromptTemplates::new(text, 3).unwrap().with_chat(Some(chat))
}

#[test]
fn a_template_that_loses_what_the_recipe_says_is_refused() {
    let system = ChatSettings {
        system: Some("Use {max_workers}.".to_owned()),
        enable_thinking: None,
    };
    let thinking = ChatSettings {
        system: None,
        enable_thinking: Some(true),
    };
    let all = compile("{% for m in messages %}{{ m.content.strip() }};{% endfor %}").unwrap();
    prompts(ChatSettings::default()).check_chat(&all).unwrap();
    prompts(system.clone()).check_chat(&all).unwrap();
    let text = prompts(thinking).check_chat(&all).unwrap_err().to_string();
    assert!(text.contains("enable_thinking"), "{text}");
    let last = compile("{{ messages[-1].content }}").unwrap();
    prompts(ChatSettings::default()).check_chat(&last).unwrap();
    let text = prompts(system).check_chat(&last).unwrap_err().to_string();
    assert!(text.contains("the system message"), "{text}");
    let parts = compile("{{ messages[0].content[0].text }}").unwrap();
    prompts(ChatSettings::default())
        .check_chat(&parts)
        .unwrap_err();
}
