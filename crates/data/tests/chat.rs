//! Chat templates against `transformers`: `scripts/golden/chat_templates.py` wrote `golden/chat_templates.json` and the
//! small model folder `golden/chat`.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use asyncthink_data::parquet::{Role, SftPair};
use asyncthink_data::{
    ChatMessage, ChatOptions, ChatSettings, ChatTemplate, PromptTemplates, PromptText, TokenId,
    Tokenizer,
};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    special_tokens: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<ChatMessage>>,
    options: Vec<ChatOptions>,
    renderings: Vec<Rendering>,
    tokenisations: Vec<Tokenisation>,
}

#[derive(Deserialize)]
struct Rendering {
    template: String,
    conversation: String,
    options: usize,
    /// Null where the reference refuses.
    text: Option<String>,
}

#[derive(Deserialize)]
struct Tokenisation {
    content: String,
    ids: Vec<TokenId>,
    /// Whether no special token is spelled, so that the ids are those of the text.
    is_plain: bool,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/chat_templates.json")).unwrap()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat")
}

fn prompts() -> PromptTemplates {
    let text = PromptText {
        organizer: "{query}".to_owned(),
        worker: "{sub_query}".to_owned(),
        query: String::new(),
    };
    let chat = ChatSettings {
        system: Some("Use at most {max_workers} workers.".to_owned()),
        enable_thinking: None,
    };
    PromptTemplates::new(text, 3).unwrap().with_chat(Some(chat))
}

#[test]
fn every_template_renders_as_in_transformers() {
    let golden = golden();
    assert!(golden.renderings.len() > 150);
    let mut differences = String::new();
    for case in &golden.renderings {
        let source = &golden.templates[&case.template];
        let file = PathBuf::from(&case.template);
        let found = ChatTemplate::new(file, source, golden.special_tokens.clone()).and_then(|it| {
            it.render(
                &golden.conversations[&case.conversation],
                &golden.options[case.options],
            )
        });
        if found.as_ref().ok() != case.text.as_ref() {
            let place = (&case.template, &case.conversation, case.options);
            let _ = writeln!(
                differences,
                "{place:?}\n  expected {:?}\n  found    {found:?}",
                case.text
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn ids_are_those_of_transformers() {
    let tokenizer = Tokenizer::from_dir(&folder()).unwrap();
    let prompts = prompts();
    for case in golden().tokenisations {
        let ids = prompts.organizer_ids(&tokenizer, &case.content).unwrap();
        assert_eq!(ids, case.ids, "{:?}", case.content);
        assert_eq!(
            prompts.worker_ids(&tokenizer, &case.content).unwrap(),
            case.ids
        );
        let text = prompts.organizer_prompt(&tokenizer, &case.content).unwrap();
        if case.is_plain {
            assert_eq!(tokenizer.encode(&text).unwrap(), case.ids);
        } else {
            assert_ne!(tokenizer.encode(&text).unwrap(), case.ids);
        }
        // What is trained on is what a rollout begins with.
        let pair = SftPair {
            trace_id: 0,
            role: Role::Organizer,
            worker_index: None,
            problem_index: 0,
            prompt: text,
            response: "8".to_owned(),
            injected: Vec::new(),
            teacher: String::new(),
            seed: 0,
            topology: String::new(),
        };
        let row = pair.tokenize(&tokenizer, prompts.form()).unwrap();
        assert_eq!(row.ids()[..case.ids.len()], case.ids);
    }
}

#[test]
fn a_template_travels_with_its_tokenizer() {
    let saved = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::from_dir(&folder()).unwrap();
    tokenizer.save(saved.path()).unwrap();
    let again = Tokenizer::from_dir(saved.path()).unwrap();
    assert_eq!(
        again.chat_template().unwrap().source(),
        tokenizer.chat_template().unwrap().source()
    );
    assert_eq!(
        prompts().organizer_ids(&again, "3 5").unwrap(),
        prompts().organizer_ids(&tokenizer, "3 5").unwrap()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_query_brings_a_special_token(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "end|>", "<|", "a", " ", "\n", "\u{FDD0}", "\u{FDD1}",
            ]),
            0..12,
        )
    ) {
        let query = parts.concat();
        let tokenizer = Tokenizer::from_dir(&folder()).unwrap();
        let ids = prompts().organizer_ids(&tokenizer, &query).unwrap();
        let special = |token: &str| {
            let id = tokenizer.token_id(token).unwrap();
            ids.iter().filter(|found| **found == id).count()
        };
        prop_assert_eq!([special("<|im_start|>"), special("<|im_end|>"), special("<|endoftext|>")], [3, 2, 0]);
        // Special tokens have no text: the query is there in full, spelled in ordinary tokens.
        let query = query.replace(['\u{FDD0}', '\u{FDD1}'], "");
        let expected = format!("system\nUse at most 3 workers.\nuser\n{query}\nassistant\n");
        prop_assert_eq!(tokenizer.decode(&ids), expected);
    }
}
