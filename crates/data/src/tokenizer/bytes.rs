//! The bytes that each token of a vocabulary adds to a text.

use std::collections::BTreeMap;

use serde_json::Value;

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

/// Bytes of every id up to the largest; none for special tokens.
pub(super) fn token_bytes(inner: &tokenizers::Tokenizer, json: &Value) -> Vec<Box<[u8]>> {
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

/// Whether decoding drops the first space of a text, as it does where encoding puts one there.
pub(super) fn strips_first_space(decoder: &Value) -> bool {
    match decoder["type"].as_str() {
        Some("Strip") => decoder["content"] == " " && decoder["start"].as_u64() > Some(0),
        Some("Metaspace") => {
            decoder["prepend_scheme"] != "never" && decoder["add_prefix_space"] != false
        }
        Some("Sequence") => decoder["decoders"]
            .as_array()
            .is_some_and(|parts| parts.iter().any(strips_first_space)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
}
