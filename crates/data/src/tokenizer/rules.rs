//! Rules of `tokenizer.json` for a text that begins a sequence and for one that continues it.
//!
//! `SentencePiece` tokenizers put a space before every text that they encode. Inside a sequence that space is not there, so
//! a text that continues one is encoded by the same rules without it.

use std::collections::BTreeSet;

use tokenizers::PostProcessorWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::token_id::TokenId;

/// A noncharacter, which no vocabulary holds.
const UNKNOWN: &str = "\u{FDD2}";

/// Position of a text in its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The text begins the sequence.
    Start,
    /// Ordinary text precedes it.
    AfterText,
    /// A token of `added_tokens` precedes it; many rules begin anew there.
    AfterAdded,
}

/// Where a tokenizer changes the start of a text; almost always by a space that the text does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PrefixSpace {
    Never,
    /// At the start of the sequence.
    First,
    /// At the start, and behind every added token.
    EverySegment,
}

/// A library error, as text.
pub(super) type Result<T> = std::result::Result<T, String>;

/// The rules for every [`Place`], either with special tokens recognised or with their written form as ordinary text.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    start: tokenizers::Tokenizer,
    /// Without the prefix space; `None` where there is none anyway.
    inside: Option<Box<tokenizers::Tokenizer>>,
    prefix_space: PrefixSpace,
    added: BTreeSet<u32>,
}

impl Rules {
    pub(super) fn new(mut start: tokenizers::Tokenizer) -> Self {
        if let Some(mut post_processor) = start.get_post_processor().cloned() {
            keep_spaces(&mut post_processor);
            start.with_post_processor(Some(post_processor));
        }
        let mut found = PrefixSpace::Never;
        let normalizer = start
            .get_normalizer()
            .cloned()
            .and_then(|it| normalizer_inside(it, &mut found));
        let mut pre_tokenizer = start.get_pre_tokenizer().cloned();
        if let Some(pre_tokenizer) = &mut pre_tokenizer {
            pre_tokenizer_inside(pre_tokenizer, &mut found);
        }
        let inside = (found != PrefixSpace::Never).then(|| {
            let mut inside = start.clone();
            inside.with_normalizer(normalizer);
            inside.with_pre_tokenizer(pre_tokenizer);
            Box::new(inside)
        });
        let mut added: BTreeSet<u32> = start.get_added_tokens_decoder().into_keys().collect();
        // The unknown token is in that list too, but stands for ordinary text.
        if let Ok(unknown) = start.encode_fast(UNKNOWN, false) {
            added.retain(|id| !unknown.get_ids().contains(id));
        }
        Self {
            start,
            inside,
            prefix_space: found,
            added,
        }
    }

    pub(super) fn encode(&self, text: &str, place: Place) -> Result<Vec<TokenId>> {
        if place == Place::AfterText && self.begins_anew_inside() {
            let tokens = self.encode_with_starts(text, place)?;
            return Ok(tokens.into_iter().map(|(id, _)| id).collect());
        }
        let encoding = self
            .of(place)
            .encode_fast(text, false)
            .map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
    }

    /// Ids with the byte of `text` that each begins at.
    pub(super) fn encode_with_starts(
        &self,
        text: &str,
        place: Place,
    ) -> Result<Vec<(TokenId, usize)>> {
        let encoding = self
            .of(place)
            .encode(text, false)
            .map_err(|error| error.to_string())?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        let mut tokens: Vec<(u32, (usize, usize))> =
            tokens.map(|(&id, &offsets)| (id, offsets)).collect();
        let mut rest = None;
        if place == Place::AfterText && self.begins_anew_inside() {
            // Behind the first added token the space is put again.
            let first = tokens.iter().position(|(id, _)| self.added.contains(id));
            if let Some(first) = first {
                rest = Some(tokens[first].1.1);
                tokens.truncate(first + 1);
            }
        }
        let mut tokens: Vec<(TokenId, usize)> = tokens
            .into_iter()
            .map(|(id, (start, _))| (TokenId(id), start))
            .collect();
        if let Some(at) = rest
            && let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty())
        {
            let rest = self.encode_with_starts(rest, Place::AfterAdded)?;
            tokens.extend(rest.into_iter().map(|(id, start)| (id, at + start)));
        }
        Ok(tokens)
    }

    /// Id of a token by its written form.
    pub(super) fn token_id(&self, token: &str) -> Option<TokenId> {
        self.start.token_to_id(token).map(TokenId)
    }

    /// Place of a text behind `last`; an unknown id is taken for ordinary text.
    pub(super) fn place_after(&self, last: Option<TokenId>) -> Place {
        match last {
            Some(last) if self.added.contains(&last.0) => Place::AfterAdded,
            _ => Place::AfterText,
        }
    }

    /// Ids that the post-processor puts before a sequence, such as the beginning-of-sequence token.
    pub(super) fn beginning(&self) -> Result<Vec<TokenId>> {
        // Any text does; what is put behind it belongs to whole sequences, and is left out.
        let encode = |add_special_tokens| {
            self.start
                .encode_fast("a", add_special_tokens)
                .map_err(|error| error.to_string())
        };
        let (plain, whole) = (encode(false)?, encode(true)?);
        let (plain, whole) = (plain.get_ids(), whole.get_ids());
        let at = (0..=whole.len().saturating_sub(plain.len()))
            .find(|&at| whole[at..].starts_with(plain))
            .unwrap_or(0);
        Ok(whole[..at].iter().copied().map(TokenId).collect())
    }

    fn begins_anew_inside(&self) -> bool {
        self.prefix_space == PrefixSpace::EverySegment
    }

    fn of(&self, place: Place) -> &tokenizers::Tokenizer {
        let begins_anew = match place {
            Place::Start => true,
            Place::AfterText => false,
            Place::AfterAdded => self.begins_anew_inside(),
        };
        match &self.inside {
            Some(inside) if !begins_anew => inside,
            _ => &self.start,
        }
    }
}

/// Lets a token that begins with spaces begin at the first of them; many post-processors say where the word begins.
fn keep_spaces(post_processor: &mut PostProcessorWrapper) {
    match post_processor {
        PostProcessorWrapper::ByteLevel(bytes) => bytes.trim_offsets = false,
        PostProcessorWrapper::Roberta(roberta) => roberta.trim_offsets = false,
        PostProcessorWrapper::Sequence(parts) => parts.as_mut().iter_mut().for_each(keep_spaces),
        PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_) => {}
    }
}

/// The normalizer without what it does to the start of a text; `found` tells whether it puts a space there.
fn normalizer_inside(
    normalizer: NormalizerWrapper,
    found: &mut PrefixSpace,
) -> Option<NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Prepend(_) => {
            *found = PrefixSpace::EverySegment;
            None
        }
        NormalizerWrapper::StripNormalizer(mut strip) if strip.strip_left => {
            *found = PrefixSpace::EverySegment;
            strip.strip_left = false;
            Some(NormalizerWrapper::StripNormalizer(strip))
        }
        NormalizerWrapper::Sequence(sequence) => {
            let parts = sequence.as_ref().iter().cloned();
            let parts = parts
                .filter_map(|it| normalizer_inside(it, found))
                .collect();
            Some(NormalizerWrapper::Sequence(
                tokenizers::normalizers::Sequence::new(parts),
            ))
        }
        other => Some(other),
    }
}

/// Takes the prefix space out of a pre-tokenizer; `found` tells whether there was one.
fn pre_tokenizer_inside(pre_tokenizer: &mut PreTokenizerWrapper, found: &mut PrefixSpace) {
    let here = match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace) => {
            let scheme = metaspace.get_prepend_scheme();
            metaspace.set_prepend_scheme(PrependScheme::Never);
            match scheme {
                PrependScheme::Always => PrefixSpace::EverySegment,
                PrependScheme::First => PrefixSpace::First,
                PrependScheme::Never => PrefixSpace::Never,
            }
        }
        PreTokenizerWrapper::ByteLevel(bytes) if bytes.add_prefix_space => {
            bytes.add_prefix_space = false;
            PrefixSpace::EverySegment
        }
        PreTokenizerWrapper::Sequence(sequence) => {
            for part in sequence.as_mut() {
                pre_tokenizer_inside(part, found);
            }
            return;
        }
        _ => return,
    };
    *found = here.max(*found);
}
