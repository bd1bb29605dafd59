//! What travels with a model besides its weights, its configuration and `tokenizer.json`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use fs_err as fs;
use serde_json::Value;

use crate::{Error, Result};

/// Files by name, relative to the model folder with `/`.
pub(crate) type Companions = BTreeMap<String, Vec<u8>>;

/// Files that lie beside `tokenizer.json`.
const FILES: [&str; 15] = [
    // Names ids that end a sequence; without it a checkpoint would stop at fewer of them than its base model.
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    // The vocabulary in the older forms, which other programs may still ask for.
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    // A model that was made from another one has to carry its terms.
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
];

/// Folder of further chat templates, one per file.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";

/// Reads those files that a model folder has.
pub(crate) fn read(directory: &Path) -> io::Result<Companions> {
    let mut names: Vec<String> = FILES.map(str::to_owned).into();
    let templates = directory.join(TEMPLATE_FOLDER);
    if templates.is_dir() {
        for entry in fs::read_dir(&templates)? {
            let name = entry?.file_name();
            let is_template = Path::new(&name).extension().is_some_and(|it| it == "jinja");
            if let Some(name) = name.to_str().filter(|_| is_template) {
                names.push(format!("{TEMPLATE_FOLDER}/{name}"));
            }
        }
    }
    let mut companions = Companions::new();
    for name in names {
        let path = directory.join(&name);
        if path.is_file() {
            companions.insert(name, fs::read(path)?);
        }
    }
    Ok(companions)
}

/// Content of a JSON file, null where it is not there; a byte-order mark before it is no part of it.
pub(crate) fn json(companions: &Companions, directory: &Path, name: &str) -> Result<Value> {
    let Some(content) = companions.get(name) else {
        return Ok(Value::Null);
    };
    let path = directory.join(name);
    let text = asyncthink_files::decode_text(content).map_err(|error| error.in_file(&path))?;
    serde_json::from_str(text).map_err(|error| Error::Tokenizer {
        path,
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    #[test]
    fn what_belongs_to_a_model_travels_and_nothing_else() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}}"#;
        fs::create_dir(from.path().join(TEMPLATE_FOLDER)).unwrap();
        let travels = [
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", "{ \"z\": 1,\n\"a\": 2}"),
            ("generation_config.json", "{ \"top_p\":0.80 }"),
            ("tokenizer.model", "\u{1}\u{2}"),
            ("chat_template.jinja", "{{ messages }}"),
            ("additional_chat_templates/tool_use.jinja", "{{ tools }}"),
            ("LICENSE", "terms"),
        ];
        let stays = [
            ("README.md", "another model's"),
            ("config.json", "{}"),
            ("additional_chat_templates/notes.txt", "-"),
            ("model.py", "print()"),
        ];
        for (name, content) in travels.iter().chain(&stays) {
            fs::write(from.path().join(name), content).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(from.path()).unwrap();
        tokenizer.save(to.path()).unwrap();
        for (name, content) in travels {
            let copy = fs::read_to_string(to.path().join(name)).unwrap();
            assert_eq!(copy, content, "{name}");
        }
        for (name, _) in stays {
            assert!(!to.path().join(name).exists(), "{name}");
        }
    }
}
