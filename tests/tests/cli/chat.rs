//! `[prompts.chat]`: the model's own chat template makes the prompts, in every stage.

use std::fmt::Write as _;
use std::path::Path;

use asyncthink_data::parquet::{Role, read_sft_pairs};

use asyncthink_tests::Workspace;

const TEMPLATE: &str = "{% for message in messages %}\n{{ message.role }}: {{ message.content | trim }}\n{% endfor %}\n\
                        {% if add_generation_prompt %}\nassistant:{% endif %}\n";

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
}

/// A folder that looks like a model as long as nobody loads it.
fn looks_like_a_model(workspace: &Workspace) -> String {
    let folder = workspace.path().join("m");
    std::fs::create_dir_all(&folder).expect("a folder");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        write(&folder.join(name), "{}");
    }
    "model={ path = \"m\" }".to_owned()
}

#[test]
fn a_template_that_cannot_serve_is_found_before_the_start() {
    let workspace = Workspace::new();
    let model = looks_like_a_model(&workspace);
    let mut report = String::new();
    for (name, template, chat) in [
        ("missing", None, "{}"),
        ("broken", Some("a\n{% if messages %}\n"), "{}"),
        (
            "raises",
            Some("{{ raise_exception('Not with me.') }}"),
            "{}",
        ),
        (
            "clock",
            Some("{{ strftime_now('%d') }}{{ messages[0].content }}"),
            "{}",
        ),
        (
            "no_system",
            Some("{{ messages[-1].content }}"),
            "{ system = \"Be brief.\" }",
        ),
        ("no_thinking", Some(TEMPLATE), "{ enable_thinking = true }"),
    ] {
        if let Some(template) = template {
            write(&workspace.path().join("m/chat_template.jinja"), template);
        }
        let chat = format!("prompts.chat={chat}");
        let args = ["grpo", "tiny.toml", "--set", &model, "--set", &chat];
        let output = workspace.run(&args);
        let shown = workspace.show(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        writeln!(report, "===== {name}\n{shown}").expect("a string");
        assert!(!workspace.path().join("run").exists(), "nothing is started");
    }
    insta::assert_snapshot!("chat_refused", report);
}

#[test]
fn all_stages_prompt_by_the_template() {
    let workspace = Workspace::new();
    workspace.done(&["synth", "tiny.toml"]);
    workspace.done(&["sft", "tiny.toml"]);
    let latest = workspace.path().join("run/sft/checkpoints/latest");
    let folder = latest.canonicalize().expect("a model");
    write(&folder.join("chat_template.jinja"), TEMPLATE);

    let model = format!("model={{ path = {folder:?} }}");
    let sets = [
        "run_dir=chat",
        "prompts.chat={ system = \"At most {max_workers}.\" }",
        &model,
    ];
    let stage = |name: &'static str, resume: &'static str| -> Vec<String> {
        let mut args = vec![name, "tiny.toml", "--resume", resume];
        for set in sets {
            args.extend(["--set", set]);
        }
        args.into_iter().map(str::to_owned).collect()
    };
    for name in ["synth", "sft", "grpo", "eval"] {
        let args = stage(name, "auto");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        workspace.done(&args);
    }

    let run = workspace.path().join("chat");
    let pairs = read_sft_pairs(&run.join("synth/pairs.parquet")).expect("pairs");
    for pair in &pairs {
        let begin = match pair.role {
            Role::Organizer => "system: At most 1.\nuser: This is main process. ",
            Role::Worker => "system: At most 1.\nuser: This is a subprocess. ",
        };
        assert!(pair.prompt.starts_with(begin), "{:?}", pair.prompt);
        assert!(pair.prompt.ends_with("\nassistant:"), "{:?}", pair.prompt);
    }
    for name in ["sft", "grpo"] {
        let model = run.join(name).join("checkpoints/latest");
        let read = |file: &str| std::fs::read_to_string(model.join(file)).expect(file);
        assert_eq!(read("chat_template.jinja"), TEMPLATE);
        assert!(read("asyncthink.json").contains("At most {max_workers}."));
    }

    // Plain text again is another run.
    let output = workspace.run(&["sft", "tiny.toml", "--set", "run_dir=chat", "--set", &model]);
    assert_eq!(output.status.code(), Some(2), "{}", workspace.show(&output));
    assert!(
        workspace.show(&output).contains("prompts.chat"),
        "{}",
        workspace.show(&output)
    );
}
