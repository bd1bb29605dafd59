//! A tokenizer made from a task's own text, for models that are trained from nothing.
//!
//! A word, a whole number or a tag is one token and has the same id wherever it stands, so that copying a number needs no
//! spelling; that is the skill which small models learn last. What is not in the vocabulary is spelled in characters, so
//! that all ASCII text survives encoding and decoding.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use crate::tokenizer::{ModelFacts, Tokenizer};
use crate::{Error, Result};

/// Pieces: a tag, a whole number, a word with the space before it, or one character.
const PIECES: &str = r"</?[A-Z]+-?\d*>|\d+| ?[A-Za-z]+|\s|.";

const EOS: &str = "<eos>";
const PAD: &str = "<pad>";
const UNK: &str = "<unk>";

/// What the vocabulary holds besides the words of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTokenizerConfig {
    /// Every whole number from 0 to this one is a token; larger ones are spelled digit by digit.
    pub max_number: u64,
    /// Largest vocabulary that is accepted.
    pub max_vocab: usize,
}

impl Default for TaskTokenizerConfig {
    fn default() -> Self {
        Self {
            max_number: 99,
            max_vocab: 4096,
        }
    }
}

/// Builds the tokenizer of a task from its text: one token per distinct word or tag, and per number up to a bound.
///
/// The result depends on the set of words only, not on their order.
///
/// # Errors
/// The vocabulary would be larger than the bound.
pub fn task_tokenizer<'a>(
    corpus: impl IntoIterator<Item = &'a str>,
    config: &TaskTokenizerConfig,
) -> Result<Tokenizer> {
    let bound = config.max_vocab;
    let check = |needed: usize| {
        if needed > bound {
            return Err(Error::VocabularyTooLarge { needed, bound });
        }
        Ok(())
    };
    // Before anything of that size is made.
    check(usize::try_from(config.max_number).unwrap_or(usize::MAX))?;
    let mut words = BTreeSet::new();
    for text in corpus {
        for piece in pieces(text) {
            let is_number = piece.bytes().all(|byte| byte.is_ascii_digit());
            if piece.chars().nth(1).is_some() && !is_number && !words.contains(piece) {
                words.insert(piece.to_owned());
                check(words.len())?;
            }
        }
    }
    let specials = [EOS, PAD, UNK].map(str::to_owned);
    let characters = std::iter::once('\n').chain(' '..='~').map(String::from);
    let numbers = (0..=config.max_number).map(|number| number.to_string());
    let mut vocab: BTreeMap<String, usize> = BTreeMap::new();
    for token in specials
        .into_iter()
        .chain(characters)
        .chain(numbers)
        .chain(words)
    {
        let next = vocab.len();
        vocab.entry(token).or_insert(next);
    }
    check(vocab.len())?;
    build(&vocab)
}

/// A byte-pair model without merges that takes whole pieces from the vocabulary and spells the others: unlike a word-level
/// model it loses nothing.
fn build(vocab: &BTreeMap<String, usize>) -> Result<Tokenizer> {
    let added: Vec<_> = [EOS, PAD, UNK]
        .iter()
        .map(|token| {
            json!({"id": vocab[*token], "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": UNK, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": []},
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": PAD, "unk_token": UNK,
        "clean_up_tokenization_spaces": false, "model_max_length": 1_000_000, "add_bos_token": false, "add_eos_token": false,
    });
    let memory = Path::new("<memory>");
    let bytes = |value: &serde_json::Value| {
        let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::Tokenizer {
            path: memory.to_path_buf(),
            message: error.to_string(),
        })?;
        text.push(b'\n');
        Ok::<_, Error>(text)
    };
    let companions = BTreeMap::from([("tokenizer_config.json".to_owned(), bytes(&config)?)]);
    Tokenizer::from_parts(memory, bytes(&json)?, companions, &ModelFacts::default())
}

/// Splits text as [`PIECES`] does. Written out because the vocabulary is made before there is a tokenizer.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let length = piece_length(rest)?;
        let (piece, after) = rest.split_at(length);
        rest = after;
        Some(piece)
    })
}

fn piece_length(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    let run = |from: usize, accept: fn(&u8) -> bool| {
        text.as_bytes()[from..]
            .iter()
            .take_while(|&byte| accept(byte))
            .count()
    };
    if first == '<' {
        let mut end = 1 + usize::from(text[1..].starts_with('/'));
        let letters = run(end, u8::is_ascii_uppercase);
        end += letters;
        end += usize::from(text[end..].starts_with('-'));
        end += run(end, u8::is_ascii_digit);
        if letters > 0 && text[end..].starts_with('>') {
            return Some(end + 1);
        }
    }
    if first.is_ascii_digit() {
        return Some(run(0, u8::is_ascii_digit));
    }
    let start = usize::from(first == ' ');
    let letters = run(start, u8::is_ascii_alphabetic);
    Some(if letters > 0 {
        start + letters
    } else {
        first.len_utf8()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{PromptForm, TokenId};

    const TEXT: &str = "3 5 7 = 15\n3*5=15 ok\n5+7=12 no\n<FORK1>3 5 7 = 15 with *</FORK1><JOIN1>3*5</JOIN1><ANSWER>3*5\n</ANSWER><RETURN>";

    fn tokenizer() -> Tokenizer {
        let config = TaskTokenizerConfig {
            max_number: 30,
            max_vocab: 512,
        };
        task_tokenizer([TEXT, "</RETURN>"], &config).unwrap()
    }

    #[test]
    fn what_an_agent_writes_never_becomes_a_special_token() {
        let tokenizer = tokenizer();
        let eos = tokenizer.eos_id().unwrap();
        for text in ["3*5<eos>7", "<eos>", "<pad><eos><FORK1>"] {
            assert!(tokenizer.encode(text).unwrap().contains(&eos));
            let ids = tokenizer.encode_continuation(text, None).unwrap();
            assert_eq!(tokenizer.decode(&ids), text);
            let filled = format!("sub {text} of\n");
            let ids = tokenizer.encode_filled(&filled, "sub  of\n").unwrap();
            assert_eq!(tokenizer.decode(&ids), filled);
        }
        assert_eq!(
            tokenizer.encode_continuation(TEXT, None).unwrap(),
            tokenizer.encode(TEXT).unwrap()
        );
        // The template's own ones stay.
        let ids = tokenizer
            .encode_filled("<eos>3 <eos> 5<eos>", "<eos><eos>")
            .unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == eos).count(), 2);
        assert_eq!(tokenizer.decode(&ids), "3 <eos> 5");
        let plain = "sub 3 5 of\n";
        assert_eq!(
            tokenizer.encode_filled(plain, "sub  of\n").unwrap(),
            tokenizer.encode(plain).unwrap()
        );
    }

    #[test]
    fn a_prompt_is_its_text_and_nothing_else() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(TEXT).unwrap();
        assert_eq!(
            tokenizer.encode_prompt(TEXT, PromptForm::Plain).unwrap(),
            ids
        );
        assert_eq!(tokenizer.encode_filled(TEXT, "").unwrap(), ids);
        assert_eq!(tokenizer.encode_continuation(TEXT, None).unwrap(), ids);
        assert_eq!(
            tokenizer.response_end_id(PromptForm::Plain),
            tokenizer.eos_id()
        );
    }

    #[test]
    fn numbers_tags_and_words_are_single_tokens() {
        let tokenizer = tokenizer();
        for whole in [
            "15",
            "<FORK1>",
            "</FORK1>",
            "<JOIN1>",
            "</RETURN>",
            "<ANSWER>",
            "\n",
            " ok",
            " with",
            "*",
        ] {
            assert_eq!(tokenizer.encode(whole).unwrap().len(), 1, "{whole}");
        }
        let fifteen = tokenizer.token_id("15").unwrap();
        for context in ["15", " 15", "=15", "15\n", "-15*", "3 15 4"] {
            assert!(
                tokenizer.encode(context).unwrap().contains(&fifteen),
                "{context}"
            );
        }
        assert!(tokenizer.vocab_size() < 512);
    }

    #[test]
    fn larger_numbers_are_spelled() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("1327").unwrap();
        let digits = ["1", "3", "2", "7"].map(|digit| tokenizer.token_id(digit).unwrap());
        assert_eq!(ids, digits);
        assert_eq!(tokenizer.decode(&ids), "1327");
    }

    #[test]
    fn specials_end_sequences_and_add_no_text() {
        let tokenizer = tokenizer();
        let eos = tokenizer.token_id("<eos>").unwrap();
        assert_eq!(tokenizer.eos_ids(), [eos]);
        assert_eq!(tokenizer.pad_id(), tokenizer.token_id("<pad>"));
        assert_eq!(
            tokenizer.decode(&[eos, tokenizer.token_id("15").unwrap(), TokenId(100_000)]),
            "15"
        );
    }

    #[test]
    fn saving_and_loading_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer();
        tokenizer.save(directory.path()).unwrap();
        let loaded = Tokenizer::from_dir(directory.path()).unwrap();
        assert_eq!(
            loaded.encode(TEXT).unwrap(),
            tokenizer.encode(TEXT).unwrap()
        );
        assert_eq!(
            (loaded.eos_ids(), loaded.json()),
            (tokenizer.eos_ids(), tokenizer.json())
        );
    }

    #[test]
    fn a_vocabulary_without_bound_is_refused() {
        for max_number in [450, 1000, u64::MAX] {
            let config = TaskTokenizerConfig {
                max_number,
                max_vocab: 512,
            };
            assert!(matches!(
                task_tokenizer([TEXT], &config),
                Err(Error::VocabularyTooLarge { .. })
            ));
        }
    }

    #[test]
    fn the_written_out_split_is_the_regular_expression() {
        let text = "<FORK1> <FORK-12><A/></B>< X><9>a bc  d12e\n\n<<JOIN3>>";
        let words: Vec<&str> = pieces(text).collect();
        let expected = [
            "<FORK1>",
            " ",
            "<FORK-12>",
            "<",
            "A",
            "/",
            ">",
            "</B>",
            "<",
            " X",
            ">",
            "<",
            "9",
            ">",
            "a",
            " bc",
            " ",
            " d",
            "12",
            "e",
            "\n",
            "\n",
            "<",
            "<JOIN3>",
            ">",
        ];
        assert_eq!(words, expected);
        // With every piece in the vocabulary the tokenizer must cut at the same places.
        let tokenizer = task_tokenizer(
            [text],
            &TaskTokenizerConfig {
                max_number: 12,
                max_vocab: 512,
            },
        )
        .unwrap();
        assert_eq!(tokenizer.encode(text).unwrap().len(), expected.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn ascii_text_survives(text in "[ -~\n]{0,60}") {
            // The specials are the only text with another meaning.
            prop_assume!(![EOS, PAD, UNK].iter().any(|special| text.contains(special)));
            let tokenizer = tokenizer();
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
        }
    }
}
