//! Text to ids and back.

mod bytes;
mod ends;
mod llama;
mod rules;
mod token_id;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::AddedToken;

use self::bytes::{strips_first_space, token_bytes};
pub(crate) use self::ends::ModelFacts;
use self::ends::turn_end;
use self::rules::{Place, Rules};
pub use self::token_id::TokenId;
use crate::chat::{ChatTemplate, Piece, mark, pieces};
use crate::companions::{self, Companions};
use crate::special_tokens::{CONFIG_FILE, SPECIAL_TOKENS_FILE, special_tokens};
use crate::{Error, Result, write_bytes_atomic};

/// Origin of a prompt's first tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptForm {
    /// Plain text: the tokenizer puts its beginning-of-sequence token before it, if it has one.
    Plain,
    /// A rendered chat template, which writes every special token itself.
    Chat,
}

/// Text to ids and back, in the format of `tokenizer.json`.
///
/// A text is encoded in one of two ways. [`Tokenizer::encode`] and [`Tokenizer::encode_prompt`] take what begins a sequence;
/// [`Tokenizer::encode_continuation`] takes what follows in one, without the space that `SentencePiece` tokenizers put before
/// a beginning. Ids of the parts are then those of the whole, wherever no token reaches across a seam.
///
/// Every id has a fixed byte string, so decoding is concatenation and can be done a token at a time; special tokens have the
/// empty string, because the protocol reads decoded text only. [`Tokenizer::save`] writes the files that were read.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    trusted: Rules,
    /// The same rules, but the written form of a special token is text like any other.
    plain: Rules,
    /// `tokenizer.json` as it was read or made.
    json: Vec<u8>,
    companions: Companions,
    /// Texts of the named special tokens.
    names: BTreeMap<String, String>,
    token_bytes: Vec<Box<[u8]>>,
    strips_first_space: bool,
    /// Ids that precede a plain prompt.
    beginning: Vec<TokenId>,
    eos_ids: Vec<TokenId>,
    eos_id: Option<TokenId>,
    turn_end_id: Option<TokenId>,
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
        let json = asyncthink_files::read_structured(path)?;
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let companions = companions::read(directory)?;
        let facts = ModelFacts::read(directory)?;
        Self::from_parts(path, json.into_bytes(), companions, &facts)
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
        facts: &ModelFacts,
    ) -> Result<Self> {
        let bad = |message: String| Error::Tokenizer {
            path: path.to_path_buf(),
            message,
        };
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        let companion = |name: &str| companions::json(&companions, directory, name);
        let (config, map) = (companion(CONFIG_FILE)?, companion(SPECIAL_TOKENS_FILE)?);
        let names = special_tokens(&config, &map);

        let content: Value =
            serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&json).map_err(|error| bad(error.to_string()))?;
        // A stored truncation or padding would silently change what is trained.
        inner
            .with_truncation(None)
            .map_err(|error| bad(error.to_string()))?;
        inner.with_padding(None);
        llama::apply_class(&mut inner, &content, &config, facts.model_type.as_deref());

        let chat = ChatTemplate::from_files(directory, &companions, &names);
        let turn_end = chat.as_ref().ok().and_then(|chat| turn_end(chat, &inner));
        // These are special whatever `tokenizer.json` calls them: no message and no agent may write one.
        let named = |name: &str| names.get(name).cloned();
        let always_special = [named("bos_token"), named("eos_token"), turn_end.clone()];
        let always_special: BTreeSet<String> = always_special
            .into_iter()
            .flatten()
            .filter(|text| inner.token_to_id(text).is_some())
            .collect();
        let tokens: Vec<AddedToken> = always_special
            .iter()
            .map(|text| AddedToken::from(text.as_str(), true))
            .collect();
        inner.add_special_tokens(&tokens);

        let id_of = |text: &String| inner.token_to_id(text).map(TokenId);
        let added = inner.get_added_tokens_decoder();
        let special_texts: BTreeSet<String> = added
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .chain(always_special)
            .filter(|text| !text.is_empty())
            .collect();
        let special_ids: BTreeSet<TokenId> = special_texts.iter().filter_map(id_of).collect();
        let mut special_texts: Vec<String> = special_texts.into_iter().collect();
        special_texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));

        let mut token_bytes = token_bytes(&inner, &content);
        for id in &special_ids {
            token_bytes[id.0 as usize] = Box::default();
        }
        let eos_id = names.get("eos_token").and_then(id_of);
        let turn_end_id = turn_end.as_ref().and_then(id_of);
        let pad_id = names.get("pad_token").and_then(id_of);
        let known = |id: &TokenId| (id.0 as usize) < token_bytes.len();
        let eos_ids: BTreeSet<TokenId> = facts
            .eos
            .iter()
            .copied()
            .map(TokenId)
            .chain(eos_id)
            .chain(turn_end_id)
            .filter(known)
            .collect();
        let eos_ids: Vec<TokenId> = eos_ids.into_iter().collect();
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let trusted = Rules::new(inner);
        Ok(Self {
            beginning: trusted.beginning().map_err(bad)?,
            trusted,
            plain: Rules::new(plain),
            json,
            names,
            token_bytes,
            strips_first_space: strips_first_space(&content["decoder"]),
            eos_id: eos_id.or_else(|| eos_ids.first().copied()),
            eos_ids,
            turn_end_id,
            special_ids,
            special_texts,
            pad_id,
            directory: directory.to_path_buf(),
            companions,
            chat: chat.map_or_else(|_| OnceLock::new(), |chat| OnceLock::from(Arc::new(chat))),
        })
    }

    /// Turns a text that begins a sequence into ids. Special tokens are recognised; none is added at either end.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        part(&self.trusted, text, &[])
    }

    /// Turns a text that continues a sequence into ids: what an agent writes, or what is put into its context. `last` is the
    /// id before it, `None` stands for ordinary text. No space is put before the text unless the tokenizer does so behind
    /// `last`. Nobody vouches for such text: the written form of a special token is spelled in ordinary tokens.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode_continuation(&self, text: &str, last: Option<TokenId>) -> Result<Vec<TokenId>> {
        let place = self.plain.place_after(last);
        self.plain
            .encode(text, place)
            .map_err(|message| failed(text, message))
    }

    /// For each token of [`Tokenizer::encode_continuation`] behind ordinary text, the byte of `text` that it begins at.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn continuation_starts(&self, text: &str) -> Result<Vec<usize>> {
        let tokens = self
            .plain
            .encode_with_starts(text, Place::AfterText)
            .map_err(|message| failed(text, message))?;
        Ok(tokens.into_iter().map(|(_, start)| start).collect())
    }

    /// Encodes a filled template of plain text, of which only the template may bring special tokens: `empty` is it without
    /// the values. The tokenizer's beginning-of-sequence token comes first.
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
            return Ok(self.with_beginning(ids));
        }
        // The values do. What template and value have in common with the empty one lies at the two ends.
        let start = common_prefix(filled, empty);
        let end = common_suffix(&filled[start..], &empty[start..]);
        let (head, rest) = filled.split_at(start);
        let (value, tail) = rest.split_at(rest.len() - end);
        let mut ids = part(&self.trusted, head, &[])?;
        ids.extend(part(&self.plain, value, &ids)?);
        ids.extend(part(&self.trusted, tail, &ids)?);
        Ok(self.with_beginning(ids))
    }

    /// Encodes what [`PromptTemplates::organizer_prompt`](crate::PromptTemplates::organizer_prompt) and its like give:
    /// special tokens are recognised, except where a message spells one; that is spelled in ordinary tokens.
    ///
    /// # Errors
    /// The tokenizer's rules cannot be applied to the text.
    pub fn encode_prompt(&self, text: &str, form: PromptForm) -> Result<Vec<TokenId>> {
        let mut ids = Vec::new();
        for piece in pieces(text) {
            match piece {
                Piece::Trusted(text) => ids.extend(part(&self.trusted, text, &ids)?),
                Piece::Foreign(text) => {
                    let spelled = part(&self.plain, text, &ids)?;
                    // Some vocabularies give a special token as an ordinary one too; leaving it out is all that is left.
                    ids.extend(spelled.iter().filter(|id| !self.special_ids.contains(id)));
                }
            }
        }
        Ok(match form {
            PromptForm::Plain => self.with_beginning(ids),
            PromptForm::Chat => ids,
        })
    }

    /// Puts the beginning-of-sequence token first, unless the text brought it.
    fn with_beginning(&self, ids: Vec<TokenId>) -> Vec<TokenId> {
        if ids.starts_with(&self.beginning) {
            return ids;
        }
        [self.beginning.as_slice(), &ids].concat()
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
        let template = ChatTemplate::from_files(&self.directory, &self.companions, &self.names)?;
        Ok(self.chat.get_or_init(|| Arc::new(template)))
    }

    /// The text of ids that begin a sequence: their bytes in order, with U+FFFD for what is not UTF-8, and without the space
    /// that the tokenizer put before it.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut text = self.decode_continuation(ids);
        if self.strips_first_space && text.starts_with(' ') {
            text.remove(0);
        }
        text
    }

    /// The text of ids that continue a sequence: their bytes in order, with U+FFFD for what is not UTF-8.
    pub fn decode_continuation(&self, ids: &[TokenId]) -> String {
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
        self.trusted.token_id(token)
    }

    /// The ids that end a sequence, ascending: those of the configurations, the tokenizer's `eos_token`, and the token that
    /// ends an assistant's message in the chat template.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos_ids
    }

    /// The id that ends what is written by this tokenizer: its own `eos_token`, or the smallest of [`Tokenizer::eos_ids`].
    pub fn eos_id(&self) -> Option<TokenId> {
        self.eos_id
    }

    /// The id that a response to a prompt ends with: in a chat the one that the template writes behind an assistant's message,
    /// else [`Tokenizer::eos_id`].
    pub fn response_end_id(&self, form: PromptForm) -> Option<TokenId> {
        match form {
            PromptForm::Plain => self.eos_id,
            PromptForm::Chat => self.turn_end_id.or(self.eos_id),
        }
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

/// Encodes a part of a prompt, of which `before` is there already.
fn part(rules: &Rules, text: &str, before: &[TokenId]) -> Result<Vec<TokenId>> {
    let place = match before.last() {
        None => Place::Start,
        last => rules.place_after(last.copied()),
    };
    rules
        .encode(text, place)
        .map_err(|message| failed(text, message))
}

fn failed(text: &str, message: String) -> Error {
    Error::Encode {
        num_bytes: text.len(),
        message,
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

#[cfg(test)]
mod tests;
