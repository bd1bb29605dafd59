//! Any files beside a `tokenizer.json` are read or refused without a panic, and every id that a tokenizer names is one that it
//! has.
//!
//! Input: a byte that chooses the tokenizer, then files that a zero byte ends each: `tokenizer_config.json`,
//! `special_tokens_map.json`, `generation_config.json`, `chat_template.jinja`. An empty one is not there.

#![no_main]

use std::fs;
use std::path::PathBuf;

use asyncthink_data::{ChatSettings, PromptForm, PromptTemplates, PromptText, Tokenizer};
use libfuzzer_sys::fuzz_target;

const TOKENIZERS: [&str; 4] = [
    include_str!("../../crates/data/tests/golden/tokenizers/byte_level_bos/tokenizer.json"),
    include_str!("../../crates/data/tests/golden/tokenizers/llama/tokenizer.json"),
    include_str!("../../crates/data/tests/golden/tokenizers/metaspace_first/tokenizer.json"),
    include_str!("../../crates/data/tests/golden/tokenizers/unigram/tokenizer.json"),
];

const FILES: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];

fuzz_target!(|data: &[u8]| {
    let [choice, contents @ ..] = data else {
        return;
    };
    let folder = PathBuf::from(format!("/dev/shm/tokenizer_folder.{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let json = TOKENIZERS[usize::from(choice & 3)];
    fs::write(folder.join("tokenizer.json"), json).expect("a file");
    let mut contents = contents.split(|&byte| byte == 0);
    for name in FILES {
        let path = folder.join(name);
        match contents.next().filter(|content| !content.is_empty()) {
            Some(content) => fs::write(path, content).expect("a file"),
            None => drop(fs::remove_file(path)),
        }
    }
    let Ok(tokenizer) = Tokenizer::from_dir(&folder) else {
        return;
    };
    assert_eq!(tokenizer.json(), json.as_bytes());
    let size = tokenizer.vocab_size();
    let ends = [PromptForm::Plain, PromptForm::Chat].map(|form| tokenizer.response_end_id(form));
    let named = tokenizer.eos_ids().iter().copied();
    for id in named
        .chain(tokenizer.pad_id())
        .chain(tokenizer.eos_id())
        .chain(ends.into_iter().flatten())
    {
        assert!((id.0 as usize) < size);
    }
    let text = PromptText {
        organizer: "Plan <s>: {query}\n".to_owned(),
        worker: "{sub_query}".to_owned(),
        query: String::new(),
    };
    let plain = PromptTemplates::new(text, 3).expect("templates");
    let chat = plain.clone().with_chat(Some(ChatSettings::default()));
    for prompts in [plain, chat] {
        // A template may refuse the message.
        let Ok(ids) = prompts.organizer_ids(&tokenizer, "3 </s> 5 \u{e9}") else {
            continue;
        };
        assert!(ids.iter().all(|id| (id.0 as usize) < size));
        tokenizer.decode(&ids);
    }
});
