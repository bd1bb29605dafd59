//! Any text as a chat template is compiled and rendered, or refused, without a panic but of the engine; a rendering says the
//! same again and is bounded.
//!
//! Input: a byte of settings, then texts that a zero byte ends each: the template, and the messages by `user` and `assistant`
//! in turn.

#![no_main]

use std::collections::BTreeMap;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Once;

use asyncthink_data::{
    ChatMessage, ChatOptions, ChatSettings, ChatTemplate, PromptTemplates, PromptText,
};
use libfuzzer_sys::fuzz_target;

/// As the engine states it.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

const SYSTEM: &str = "Be brief.";

/// The reader catches panics of the engine; libFuzzer's own hook ends the process at them too.
static HOOK: Once = Once::new();

fn set_hook() {
    std::panic::set_hook(Box::new(|info| {
        let is_engine = |place: &Location<'_>| place.file().contains("/minijinja-");
        if !info.location().is_some_and(is_engine) {
            eprintln!("{info}");
            std::process::abort();
        }
    }));
}

fuzz_target!(|data: &[u8]| {
    HOOK.call_once(set_hook);
    let [flags, texts @ ..] = data else {
        return;
    };
    let is_set = |bit: u8| flags >> bit & 1 == 1;
    let texts = String::from_utf8_lossy(texts);
    let mut texts = texts.split('\0');
    let source = texts.next().unwrap_or_default();
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let special: BTreeMap<String, String> = special
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
    let Ok(template) = ChatTemplate::new(PathBuf::from("chat_template.jinja"), source, special)
    else {
        return;
    };
    assert_eq!(template.source(), source);
    let roles = ["user", "assistant"].into_iter().cycle();
    let talk = texts
        .take(6)
        .zip(roles)
        .map(|(text, role)| ChatMessage::new(role, text));
    let system = is_set(0).then(|| ChatMessage::new("system", SYSTEM));
    let messages: Vec<ChatMessage> = system.into_iter().chain(talk).collect();
    let thinking = is_set(1).then(|| ("enable_thinking".to_owned(), is_set(2).into()));
    let options = ChatOptions {
        add_generation_prompt: is_set(3),
        variables: thinking.into_iter().collect(),
    };
    let text = template.render(&messages, &options).ok();
    if let Some(text) = &text {
        assert!(text.len() <= MAX_OUTPUT_BYTES);
    }
    assert_eq!(template.render(&messages, &options).ok(), text);
    check_prompts(&template, is_set(0));
});

/// What passes the check of a recipe is shown.
fn check_prompts(template: &ChatTemplate, has_system: bool) {
    let text = PromptText {
        organizer: "Plan: {query}".to_owned(),
        worker: "Do: {sub_query}".to_owned(),
        query: String::new(),
    };
    let settings = ChatSettings {
        system: has_system.then(|| SYSTEM.to_owned()),
        enable_thinking: None,
    };
    let prompts = PromptTemplates::new(text, 3).expect("templates");
    if prompts
        .with_chat(Some(settings))
        .check_chat(template)
        .is_ok()
        && has_system
    {
        let messages = [
            ChatMessage::new("system", SYSTEM),
            ChatMessage::new("user", "Plan: 3 5 7 = 15"),
        ];
        let text = template.render(&messages, &ChatOptions::default());
        assert!(text.expect("a rendering").contains(SYSTEM));
    }
}
