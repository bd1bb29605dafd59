//! Any text that is encoded in two parts decodes to itself, its tokens begin where they do in it, and it brings no special
//! token into a prompt.
//!
//! Input: a byte that chooses the tokenizer, a byte that says where to cut, then the text.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use asyncthink_data::{ChatSettings, PromptTemplates, PromptText, TokenId, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// Folders of tokenizers that can spell any text.
const FOLDERS: [&str; 8] = [
    "byte_level",
    "byte_level_bos",
    "llama",
    "llama_legacy",
    "metaspace_always",
    "metaspace_first",
    "metaspace_never",
    "prepend",
];

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let folders =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/data/tests/golden/tokenizers");
    let read = |name: &&str| Tokenizer::from_dir(&folders.join(name)).expect("a tokenizer");
    FOLDERS.iter().map(read).collect()
});

/// Where one of these is recognised, the text is not all that there is.
const SPECIAL: [&str; 3] = ["<s>", "</s>", "<unk>"];
const ADDED: [&str; 2] = ["<tool>", "</tool>"];

fuzz_target!(|data: &[u8]| {
    let [choice, cut, text @ ..] = data else {
        return;
    };
    let at = usize::from(choice & 7);
    let (tokenizer, is_bytes) = (&TOKENIZERS[at], FOLDERS[at].starts_with("byte_level"));
    let text = String::from_utf8_lossy(text);
    let cut = text.floor_char_boundary(usize::from(*cut));
    let (head, tail) = text.split_at(cut);
    let decoded = |text: &str| match is_bytes {
        true => text.to_owned(),
        false => text.replace('\u{2581}', " "),
    };
    let holds = |text: &str, tokens: &[&str]| tokens.iter().any(|token| text.contains(token));
    // Some rules put a space behind an added token.
    let is_exact = is_bytes || !holds(head, &ADDED) && !holds(tail, &ADDED);

    let mut ids = tokenizer.encode(head).expect("ids");
    let last = ids.last().copied();
    ids.extend(tokenizer.encode_continuation(tail, last).expect("ids"));
    if is_exact && !holds(head, &SPECIAL) {
        let (found, expected) = (tokenizer.decode(&ids), decoded(&text));
        // A space of the text may take the place of the one that is put before it.
        assert!(
            found == expected || expected.strip_prefix(' ') == Some(&found),
            "{found:?} {expected:?}"
        );
    }

    let ids = tokenizer.encode_continuation(tail, None).expect("ids");
    let starts = tokenizer.continuation_starts(tail).expect("starts");
    assert_eq!(ids.len(), starts.len());
    assert!(starts.is_sorted() && starts.iter().all(|&start| start <= tail.len()));
    if is_exact {
        assert_eq!(tokenizer.decode_continuation(&ids), decoded(tail));
        for (num_before, pair) in (1..).zip(starts.windows(2)) {
            // The bytes of one character may be several tokens.
            if pair[0] < pair[1] {
                let before = tokenizer.decode_continuation(&ids[..num_before]);
                assert_eq!(before, decoded(&tail[..pair[1]]));
            }
        }
    }
    check_prompts(tokenizer, &text);
});

/// A prompt has the special tokens of its template, whatever the query spells.
fn check_prompts(tokenizer: &Tokenizer, query: &str) {
    let text = PromptText {
        organizer: "Plan <s>: {query}\n".to_owned(),
        worker: "{sub_query}".to_owned(),
        query: String::new(),
    };
    let plain = PromptTemplates::new(text, 3).expect("templates");
    let chat = plain.clone().with_chat(Some(ChatSettings::default()));
    let special = |ids: Vec<TokenId>| -> Vec<TokenId> {
        ids.into_iter()
            .filter(|&id| tokenizer.token_bytes(id).is_empty())
            .collect()
    };
    for prompts in [plain, chat] {
        for ids_of in [PromptTemplates::organizer_ids, PromptTemplates::worker_ids] {
            let with = ids_of(&prompts, tokenizer, query).expect("ids");
            let without = ids_of(&prompts, tokenizer, "").expect("ids");
            assert_eq!(special(with), special(without));
        }
    }
}
