use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::{CONFIG_FILE, ChatTemplate, Piece, TEMPLATE_FILE, mark, pieces, special_name};
use crate::companions::{self, Companions};
use crate::{Error, Result, write_bytes_atomic};

/// The id of a token in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

/// Text to ids and back, in the format of `tokenizer.json`.
///
/// Every id has a fixed byte string, so decoding is concatenation and can be done a token at a time; special tokens have the
/// empty string, because the protocol reads decoded text only. [`Tokenizer::save`] writes the files that were read, byte for byte.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same rules, but the written form of a special token is text like any other.
    plain: tokenizers::Tokenizer,
    /// `tokenizer.json` as it was read or made.
    json: Vec<u8>,
    companions: Companions,
    token_bytes: Vec<Box<[u8]>>,
    eos_ids: Vec<TokenId>,
    eos_id: Option<TokenId>,
    special_ids: BTreeSet<TokenId>,
    /// Written forms of the special tokens, longest first.
    special_texts: Vec<String>,
    pad_id: Option<TokenId>,
    /// Where the files came from, for messages.
    directory: PathBuf,
    /// Compiled when it is first asked for: a template that nobody uses may be whatever it is.
    chat: OnceLock<Arc<ChatTemplate>>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, with the settings that lie beside it.
    ///
    /// # Errors
    /// A file cannot be read, or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let json = fs::read(path)?;
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let companions = companions::read(directory)?;
        // The ids that end generation are written in up to three places; a model stops at any of them.
        let mut eos = BTreeSet::new();
        for name in ["generation_config.json", "config.json"] {
            let companion = directory.join(name);
            if companion.is_file() {
                let content: Value = parse_json(&fs::read(&companion)?, &companion)?;
                collect_ids(&content["eos_token_id"], &mut eos);
            }
        }
        Self::from_parts(path, json, companions, &eos)
    }

    /// Reads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or is not a tokenizer.
    pub fn from_dir(directory: &Path) -> Result<Self> {
        Self::from_file(&directory.join("tokenizer.json"))
    }

    pub(crate) fn from_parts(
        path: &Path,
        json: Vec<u8>,
        companions: Companions,
        eos: &BTreeSet<u32>,
    ) -> Result<Self> {
        let bad = |message: String| Error::Tokenizer {
            path: path.to_path_buf(),
            message,
        };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&json).map_err(|error| bad(error.to_string()))?;
        // A stored truncation or padding would silently change what is trained.
        inner
            .with_truncation(None)
            .map_err(|error| bad(error.to_string()))?;
        inner.with_padding(None);
        let token_bytes = token_bytes(&inner, &parse_json(&json, path)?);
        let mut eos = eos.clone();
        let (mut pad_id, mut eos_id) = (None, None);
        if let Some(config) = companions.get(CONFIG_FILE) {
            let config: Value = parse_json(config, &path.with_file_name(CONFIG_FILE))?;
            let named =
                |key: &str| special_name(&config[key]).and_then(|name| inner.token_to_id(&name));
            eos_id = named("eos_token");
            eos.extend(eos_id);
            pad_id = named("pad_token").map(TokenId);
        }
        let eos_ids: Vec<TokenId> = eos
            .into_iter()
            .filter(|&id| (id as usize) < token_bytes.len())
            .map(TokenId)
            .collect();
        let eos_id = eos_id
            .map(TokenId)
            .filter(|id| eos_ids.contains(id))
            .or_else(|| eos_ids.first().copied());
        let (special_ids, mut special_texts): (BTreeSet<_>, Vec<_>) = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (TokenId(id), token.content))
            .unzip();
        special_texts.retain(|text| !text.is_empty());
        special_texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self {
            inner,
            plain,
            json,
            companions,
            token_bytes,
            eos_ids,
            eos_id,
            special_ids,
            special_texts,
            pad_id,
            directory: path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or_else(|| Path::new("."))
                .to_path_buf(),
            chat: OnceLock::new(),
        })
    }

    /// Turns text into ids; nothing is added at either end.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        Self::encode_with(&self.inner, text)
    }

    /// [`Tokenizer::encode`] for text that nobody vouches for, such as what an agent wrote: the written form of a special
    /// token is spelled in ordinary tokens. Text without any has the same ids as by [`Tokenizer::encode`].
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>> {
        Self::encode_with(&self.plain, text)
    }

    /// Encodes a filled template of which only the template may bring special tokens: `empty` is it without the values.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode_filled(&self, filled: &str, empty: &str) -> Result<Vec<TokenId>> {
        let ids = self.encode(filled)?;
        let num_special = |ids: &[TokenId]| {
            ids.iter()
                .filter(|id| self.special_ids.contains(id))
                .count()
        };
        let found = num_special(&ids);
        if found == 0 || found == num_special(&self.encode(empty)?) {
            return Ok(ids);
        }
        // The values do. What template and value have in common with the empty one lies at the two ends.
        let start = common_prefix(filled, empty);
        let end = common_suffix(&filled[start..], &empty[start..]);
        let (head, rest) = filled.split_at(start);
        let (value, tail) = rest.split_at(rest.len() - end);
        Ok([
            self.encode(head)?,
            self.encode_plain(value)?,
            self.encode(tail)?,
        ]
        .concat())
    }

    /// Encodes what [`PromptTemplates::organizer_prompt`](crate::PromptTemplates::organizer_prompt) and its like give:
    /// special tokens are recognised, except where a message spells one; that is spelled in ordinary tokens.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>> {
        let mut ids = Vec::new();
        for piece in pieces(text) {
            match piece {
                Piece::Trusted(text) => ids.extend(self.encode(text)?),
                Piece::Foreign(text) => {
                    let spelled = self.encode_plain(text)?;
                    // Some vocabularies give a special token as an ordinary one too; leaving it out is all that is left.
                    ids.extend(spelled.iter().filter(|id| !self.special_ids.contains(id)));
                }
            }
        }
        Ok(ids)
    }

    /// The content of a message with what spells a special token marked, for [`Tokenizer::encode_prompt`].
    pub(crate) fn mark_special<'a>(&self, content: &'a str) -> Cow<'a, str> {
        mark(content, &self.special_texts)
    }

    /// The chat template that lies beside the tokenizer.
    ///
    /// # Errors
    /// There is none, or it uses what the engine does not know.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        if let Some(template) = self.chat.get() {
            return Ok(template);
        }
        let file = |name| self.companions.get(name).map(Vec::as_slice);
        let template =
            ChatTemplate::from_files(&self.directory, file(TEMPLATE_FILE), file(CONFIG_FILE))?;
        Ok(self.chat.get_or_init(|| Arc::new(template)))
    }

    fn encode_with(rules: &tokenizers::Tokenizer, text: &str) -> Result<Vec<TokenId>> {
        let encoding = rules
            .encode_fast(text, false)
            .map_err(|error| Error::Encode {
                num_bytes: text.len(),
                message: error.to_string(),
            })?;
        Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
    }

    /// The text of ids: their bytes in order, with U+FFFD for what is not UTF-8.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes(id))
            .copied()
            .collect();
        match String::from_utf8_lossy(&bytes) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        }
    }

    /// The bytes that a token adds to the text; empty for special tokens and for ids outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.token_bytes
            .get(id.0 as usize)
            .map_or(&[], AsRef::as_ref)
    }

    /// The id of a token by its written form.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(TokenId)
    }

    /// The ids that end a sequence, ascending.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos_ids
    }

    /// The id that ends what is written by this tokenizer: its own `eos_token`, or the smallest of [`Tokenizer::eos_ids`].
    pub fn eos_id(&self) -> Option<TokenId> {
        self.eos_id
    }

    /// The padding id, where the tokenizer names one.
    pub fn pad_id(&self) -> Option<TokenId> {
        self.pad_id
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.token_bytes.len()
    }

    /// Writes `tokenizer.json` and what else was beside it and travels with a model, as it was read: settings, chat
    /// templates, `generation_config.json`, the licence.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        write_bytes_atomic(&directory.join("tokenizer.json"), &self.json)?;
        for (name, content) in &self.companions {
            write_bytes_atomic(&directory.join(name), content)?;
        }
        Ok(())
    }

    /// `tokenizer.json` as bytes, for a fingerprint.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

/// Length of the longest common beginning, at a character's boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

/// Length of the longest common end, at a character's boundary.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars()
        .rev()
        .zip(b.chars().rev())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

fn parse_json(bytes: &[u8], path: &Path) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| Error::Tokenizer {
        path: PathBuf::from(path),
        message: error.to_string(),
    })
}

fn collect_ids(value: &Value, ids: &mut BTreeSet<u32>) {
    let values = value
        .as_array()
        .map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    ids.extend(
        values
            .iter()
            .filter_map(|id| u32::try_from(id.as_u64()?).ok()),
    );
}

/// How the vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// Tokens are text as it is.
    Plain,
    /// GPT-2's: each byte is one printable character.
    ByteLevel,
    /// `SentencePiece`'s: U+2581 is a space, `<0x0A>` a byte.
    SentencePiece,
}

impl Alphabet {
    fn of(json: &Value) -> Self {
        let decoder = json["decoder"].to_string();
        if decoder.contains("\"ByteLevel\"") {
            Self::ByteLevel
        } else if decoder.contains("\"ByteFallback\"") || decoder.contains("\"Metaspace\"") {
            Self::SentencePiece
        } else {
            Self::Plain
        }
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::Plain => token.as_bytes().to_vec(),
            Self::ByteLevel => {
                // A token that is not written in the alphabet is taken as plain text.
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::SentencePiece => {
                let byte = token
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'));
                match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('\u{2581}', " ").into_bytes(),
                }
            }
        }
    }
}

/// The inverse of GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 in order.
fn byte_of_char(c: char) -> Option<u8> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(c);
    if code < 0x100 {
        return u8::try_from(code).ok().filter(|_| is_printable(code));
    }
    let rank = usize::try_from(code - 0x100).ok()?;
    (0_u8..=255)
        .filter(|&byte| !is_printable(u32::from(byte)))
        .nth(rank)
}

fn token_bytes(inner: &tokenizers::Tokenizer, json: &Value) -> Vec<Box<[u8]>> {
    let alphabet = Alphabet::of(json);
    let vocab: BTreeMap<u32, String> = inner
        .get_vocab(true)
        .into_iter()
        .map(|(token, id)| (id, token))
        .collect();
    let added: BTreeMap<u32, bool> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, token)| (id, token.special))
        .collect();
    let size = vocab.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
    let mut bytes = vec![Box::<[u8]>::default(); size];
    for (id, token) in vocab {
        bytes[id as usize] = match added.get(&id) {
            Some(true) => Box::default(),
            Some(false) => token.into_bytes().into(),
            None => alphabet.bytes(&token).into(),
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = BTreeSet::new();
        for code in 0..0x200 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of_char) {
                assert!(seen.insert(byte));
            }
        }
        assert_eq!(seen.len(), 256);
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn sentence_pieces_become_bytes() {
        assert_eq!(Alphabet::SentencePiece.bytes("<0x0A>"), b"\n");
        assert_eq!(Alphabet::SentencePiece.bytes("\u{2581}the"), b" the");
    }

    #[test]
    fn the_named_end_of_sequence_comes_first_and_all_of_them_survive_saving() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let text = ["a", "b", "<|endoftext|>", "<|im_end|>"];
        let special = |id: u32| {
            serde_json::json!({"id": id, "content": text[id as usize], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(2), special(3)],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}},
        });
        let write = |name: &str, value: serde_json::Value| {
            fs::write(from.path().join(name), value.to_string()).unwrap();
        };
        write("tokenizer.json", json);
        write(
            "tokenizer_config.json",
            serde_json::json!({"eos_token": "<|im_end|>"}),
        );
        write(
            "generation_config.json",
            serde_json::json!({"eos_token_id": [3, 2]}),
        );
        let tokenizer = Tokenizer::from_dir(from.path()).unwrap();
        assert_eq!(tokenizer.eos_id(), Some(TokenId(3)));
        assert_eq!(tokenizer.eos_ids(), [TokenId(2), TokenId(3)]);
        tokenizer.save(to.path()).unwrap();
        let again = Tokenizer::from_dir(to.path()).unwrap();
        assert_eq!(again.eos_id(), tokenizer.eos_id());
        assert_eq!(again.eos_ids(), tokenizer.eos_ids());
    }

    #[test]
    fn a_broken_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        fs::write(&path, "{").unwrap();
        let error = Tokenizer::from_dir(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
        assert!(matches!(
            Tokenizer::from_file(&directory.path().join("none")),
            Err(Error::Io(_))
        ));
    }
}
