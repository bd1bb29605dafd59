//! Tokenizers of every kind against `transformers`, and the seams of a sequence that is encoded in parts:
//! `scripts/golden/tokenizer_ids.py` wrote the folders in `golden/tokenizers` and `golden.json` beside them.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use asyncthink_data::parquet::{Role, SftPair, Span};
use asyncthink_data::{
    ChatOptions, ChatSettings, ChatTemplate, PromptForm, PromptTemplates, PromptText, TokenId,
    Tokenizer,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    folders: BTreeMap<String, Folder>,
}

#[derive(Deserialize)]
struct Folder {
    texts: Vec<Encoded>,
    chats: Vec<Chat>,
    seams: Vec<Seam>,
    special: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    /// Without special tokens around the text.
    ids: Vec<TokenId>,
    /// With those before it.
    prompt_ids: Vec<TokenId>,
    decoded: String,
}

#[derive(Deserialize)]
struct Chat {
    content: String,
    ids: Vec<TokenId>,
}

/// Two texts that no token of the whole reaches across.
#[derive(Deserialize)]
struct Seam {
    head: String,
    tail: String,
    ids: Vec<TokenId>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/tokenizers/golden.json")).unwrap()
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/tokenizers")
        .join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_dir(&directory(name)).unwrap()
}

fn prompts(chat: Option<ChatSettings>) -> PromptTemplates {
    let text = PromptText {
        organizer: "{query}".to_owned(),
        worker: "{sub_query}".to_owned(),
        query: String::new(),
    };
    PromptTemplates::new(text, 3).unwrap().with_chat(chat)
}

#[test]
fn texts_and_plain_prompts_have_the_ids_of_transformers() {
    for (name, folder) in golden().folders {
        let tokenizer = tokenizer(&name);
        for case in folder.texts {
            let place = format!("{name}: {:?}", case.text);
            assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{place}");
            let ids = tokenizer.encode_filled(&case.text, &case.text).unwrap();
            assert_eq!(ids, case.prompt_ids, "{place}");
            assert_eq!(
                tokenizer
                    .encode_prompt(&case.text, PromptForm::Plain)
                    .unwrap(),
                case.prompt_ids,
                "{place}"
            );
            assert_eq!(tokenizer.decode(&case.ids), case.decoded, "{place}");
            if !case.text.contains("</s>") {
                let ids = prompts(None).organizer_ids(&tokenizer, &case.text).unwrap();
                assert_eq!(ids, case.prompt_ids, "{place}");
            }
        }
    }
}

#[test]
fn a_beginning_of_sequence_comes_once() {
    for name in ["prepend", "metaspace_first", "byte_level_bos"] {
        let tokenizer = tokenizer(name);
        let bos = tokenizer.token_id("<s>").unwrap();
        for (text, form, expected) in [
            ("3 5", PromptForm::Plain, 1),
            ("<s>3 5", PromptForm::Plain, 1),
            ("3 5", PromptForm::Chat, 0),
            ("<s>3 5", PromptForm::Chat, 1),
        ] {
            let ids = tokenizer.encode_prompt(text, form).unwrap();
            let found = ids.iter().filter(|id| **id == bos).count();
            assert_eq!(found, expected, "{name}: {text} {form:?}");
        }
    }
}

#[test]
fn chats_have_the_ids_of_transformers() {
    for (name, folder) in golden().folders {
        let tokenizer = tokenizer(&name);
        let prompts = prompts(Some(ChatSettings::default()));
        for case in folder.chats {
            let ids = prompts.organizer_ids(&tokenizer, &case.content).unwrap();
            assert_eq!(ids, case.ids, "{name}: {:?}", case.content);
        }
    }
}

#[test]
fn special_tokens_have_the_names_of_transformers() {
    for (name, folder) in golden().folders {
        for (key, expected) in folder.special {
            let source = format!("{{{{ {key} if {key} is defined else '-' }}}}");
            let scratch = tempfile::tempdir().unwrap();
            for file in ["tokenizer_config.json", "special_tokens_map.json"] {
                let path = directory(&name).join(file);
                if path.exists() {
                    std::fs::copy(path, scratch.path().join(file)).unwrap();
                }
            }
            std::fs::write(scratch.path().join("chat_template.jinja"), source).unwrap();
            let template = ChatTemplate::from_dir(scratch.path()).unwrap();
            let found = template.render(&[], &ChatOptions::default()).unwrap();
            if name != "llama_byte_level" {
                assert_eq!(found, expected.as_deref().unwrap_or("-"), "{name}: {key}");
            }
        }
        assert_eq!(tokenizer(&name).eos_id(), tokenizer(&name).token_id("</s>"));
    }
}

#[test]
fn a_continuation_has_the_ids_that_it_has_in_the_whole() {
    for (name, folder) in golden().folders {
        let tokenizer = tokenizer(&name);
        for seam in folder.seams {
            let place = format!("{name}: {:?} {:?}", seam.head, seam.tail);
            let mut ids = tokenizer.encode(&seam.head).unwrap();
            ids.extend(
                tokenizer
                    .encode_continuation(&seam.tail, ids.last().copied())
                    .unwrap(),
            );
            assert_eq!(ids, seam.ids, "{place}");
        }
    }
}

/// Text of what agents write; an apostrophe would be cut differently at the start of a text by the rules of GPT-2.
fn texts() -> impl Strategy<Value = String> {
    let parts = [
        "the",
        "answer",
        " the",
        " worker",
        "3",
        " 15",
        "*",
        " = ",
        "\n",
        "\n\n",
        " ",
        "  ",
        "<FORK1>",
        "</FORK1>",
        "<JOIN1>",
        "<ANSWER>",
        "</RETURN>",
        "é",
        "😀",
        "中文",
        ".",
        "q",
        "<tool>",
        "▁",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 1..14)
        .prop_map(|parts| parts.concat())
}

/// How often the ids of two parts are those of the whole.
#[derive(Debug, Default)]
struct Seams {
    cuts: u32,
    /// Cuts that are a seam of tokens in the whole too.
    clean: u32,
    equal: u32,
    equal_clean: u32,
}

#[test]
fn parts_have_the_ids_of_the_whole_where_no_token_reaches_across() {
    let mut measured = BTreeMap::new();
    for name in golden().folders.into_keys() {
        let tokenizer = tokenizer(&name);
        let mut seams = Seams::default();
        let mut runner = TestRunner::deterministic();
        let strategy = (texts(), any::<prop::sample::Index>());
        for _ in 0..600 {
            let (text, cut) = strategy.new_tree(&mut runner).unwrap().current();
            let at: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
            if at.is_empty() {
                continue;
            }
            let (head, tail) = text.split_at(at[cut.index(at.len())]);
            let whole = tokenizer.encode(&text).unwrap();
            let first = tokenizer.encode(head).unwrap();
            let last = first.last().copied();
            let second = tokenizer.encode_continuation(tail, last).unwrap();
            let parts = [first.clone(), second.clone()].concat();
            seams.cuts += 1;
            seams.equal += u32::from(parts == whole);
            // Rules that look at what follows a run of spaces cut the run itself differently.
            let is_apart = !head.ends_with([' ', '\n']) || !name.contains("byte_level");
            // A space of the text takes the place of the one that would be put before it.
            let is_shifted =
                head.trim_start_matches([' ', '▁']).is_empty() || tail.starts_with('▁');
            let is_clean = is_apart && !is_shifted && is_seam(&tokenizer, &whole, head);
            if is_clean {
                seams.clean += 1;
                seams.equal_clean += u32::from(parts == whole);
                assert_eq!(parts, whole, "{name}: {head:?} {tail:?}");
            }
            // A part says the text that it was made from, whatever is before it.
            let is_lossless = name.starts_with("byte_level") || !tail.contains('▁');
            if is_lossless && name != "unigram" && !tail.contains("<tool>") {
                let inside = tokenizer.encode_continuation(tail, None).unwrap();
                assert_eq!(tokenizer.decode_continuation(&inside), tail, "{name}");
            }
        }
        assert!(seams.clean > 80, "{name}: {seams:?}");
        measured.insert(name, seams);
    }
    eprintln!("{measured:#?}");
}

/// Whether a token of the whole begins where `head` ends.
fn is_seam(tokenizer: &Tokenizer, whole: &[TokenId], head: &str) -> bool {
    (1..whole.len()).any(|at| {
        let decoded = tokenizer.decode(&whole[..at]);
        // Byte-level decoders keep the space that was put before the text.
        decoded == head || decoded.strip_prefix(' ') == Some(head)
    })
}

#[test]
fn a_training_row_is_the_text_with_its_injected_parts() {
    for name in golden().folders.into_keys() {
        let tokenizer = tokenizer(&name);
        let response = "<FORK1>3 5</FORK1><JOIN1>15</JOIN1> the answer";
        let offset = |text: &str| u32::try_from(response.find(text).unwrap()).unwrap();
        let pair = SftPair {
            trace_id: 0,
            role: Role::Organizer,
            worker_index: None,
            problem_index: 0,
            prompt: "3 5 7 = 15\n".to_owned(),
            response: response.to_owned(),
            injected: vec![Span {
                start: offset("15<"),
                end: offset(" the"),
            }],
            teacher: String::new(),
            seed: 0,
            topology: String::new(),
        };
        let row = pair.tokenize(&tokenizer, PromptForm::Plain).unwrap();
        let text = format!("{}{response}", pair.prompt);
        assert_eq!(tokenizer.decode(row.ids()).trim_start(), text, "{name}");
        let whole = tokenizer.encode_prompt(&text, PromptForm::Plain).unwrap();
        assert_eq!(row.ids()[..row.len() - 1], whole, "{name}");
        assert_eq!(row.ids().last().copied(), tokenizer.eos_id());
    }
}

#[test]
fn tokens_of_a_continuation_begin_where_they_do_in_the_text() {
    for name in golden().folders.into_keys() {
        let tokenizer = tokenizer(&name);
        let known = [
            "<FORK1>3 5</FORK1><JOIN1>",
            "x<tool>the</tool> y</FORK1> 3<ANSWER>",
        ];
        let spelled = ["中文</FORK1> x<tool>the</tool>", "\n é<ANSWER>"];
        // The words of this one have no bytes to be spelled in.
        let spelled = spelled.into_iter().filter(|_| name != "unigram");
        for text in known.into_iter().chain(spelled) {
            let ids = tokenizer.encode_continuation(text, None).unwrap();
            let starts = tokenizer.continuation_starts(text).unwrap();
            assert_eq!(ids.len(), starts.len(), "{name}");
            for tag in ["<FORK1>", "</FORK1>", "<JOIN1>", "<ANSWER>"] {
                let Some(end) = text.find(tag).map(|at| at + tag.len()) else {
                    continue;
                };
                let num_before = starts.iter().filter(|start| **start < end).count();
                let decoded = tokenizer.decode_continuation(&ids[..num_before]);
                assert!(decoded.ends_with(tag), "{name}: {decoded:?} {text:?}");
                let decoded = tokenizer.decode_continuation(&ids[..num_before - 1]);
                assert!(!decoded.ends_with(tag), "{name}: {decoded:?} {text:?}");
            }
        }
    }
}

#[test]
fn a_token_begins_at_the_spaces_before_its_word() {
    for name in ["byte_level", "byte_level_bos", "metaspace_first"] {
        let tokenizer = tokenizer(name);
        let text = "the \n\n  the 3";
        let ids = tokenizer.encode_continuation(text, None).unwrap();
        let starts = tokenizer.continuation_starts(text).unwrap();
        for (at, start) in starts.into_iter().enumerate() {
            let before = tokenizer.decode_continuation(&ids[..at]);
            assert_eq!(before, &text[..start], "{name}");
        }
    }
}

#[test]
fn byte_order_marks_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let from = directory("metaspace_first");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "config.json",
    ] {
        let content = std::fs::read(from.join(name)).unwrap();
        let marked = [b"\xef\xbb\xbf".as_slice(), &content].concat();
        std::fs::write(folder.path().join(name), marked).unwrap();
    }
    let (marked, expected) = (
        Tokenizer::from_dir(folder.path()).unwrap(),
        tokenizer("metaspace_first"),
    );
    let prompts = prompts(Some(ChatSettings::default()));
    assert_eq!(
        prompts.organizer_ids(&marked, "3 5").unwrap(),
        prompts.organizer_ids(&expected, "3 5").unwrap()
    );
    assert_eq!(marked.eos_ids(), expected.eos_ids());
    assert_eq!(marked.json(), expected.json());
}
