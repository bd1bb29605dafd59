//! Exchange between the ranks that make the files together.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Longest message of a failure that is sent to the other ranks.
const MAX_MESSAGE_BYTES: usize = 4096;

/// First byte of a message: the kind of its body.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const FOUND_INPUT_WRONG: u8 = 2;

/// All-gather of bytes between ranks.
pub trait Exchange {
    /// Rank of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Gathers the bytes of every rank, in the order of the ranks; lengths may differ. All ranks call it.
    ///
    /// # Errors
    /// When a rank is lost.
    fn gather(
        &self,
        bytes: &[u8],
    ) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>;
}

/// A world of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SingleRank;

impl Exchange for SingleRank {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn gather(
        &self,
        bytes: &[u8],
    ) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(vec![bytes.to_vec()])
    }
}

/// Share of a rank in a list of items: every `world_size`-th.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stride {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
}

impl Stride {
    /// The share of a single rank.
    pub(crate) const ALL: Self = Self {
        rank: 0,
        world_size: 1,
    };

    /// Tells whether the item is this rank's.
    pub(crate) fn holds(self, index: usize) -> bool {
        self.rank_of(index) == self.rank
    }

    /// The rank whose item it is.
    pub(crate) fn rank_of(self, index: usize) -> usize {
        index % self.world_size
    }
}

/// Typed messages between ranks. Every exchange carries failures too, so that all ranks fail where one does.
pub(crate) struct RankChannel<'a> {
    exchange: &'a dyn Exchange,
}

impl<'a> RankChannel<'a> {
    pub(crate) fn new(exchange: &'a dyn Exchange) -> Self {
        Self { exchange }
    }

    pub(crate) fn is_first(&self) -> bool {
        self.exchange.rank() == 0
    }

    pub(crate) fn stride(&self) -> Stride {
        Stride {
            rank: self.exchange.rank(),
            world_size: self.exchange.world_size(),
        }
    }

    fn is_single(&self) -> bool {
        self.exchange.world_size() == 1
    }

    /// Fails on every rank where one has failed; whoever failed keeps its own error.
    pub(crate) fn agree<T>(&self, own: Result<T>) -> Result<T> {
        match own {
            Ok(value) => self.all_gather(&[]).map(|_| value),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Broadcasts the value of the first rank. The others give `None`, or their failure.
    pub(crate) fn broadcast<T: Serialize + DeserializeOwned>(
        &self,
        own: Result<Option<T>>,
    ) -> Result<T> {
        let encoded = own.and_then(|own| {
            let needs_bytes = own.is_some() && !self.is_single();
            let body = if needs_bytes {
                to_json(&own)?
            } else {
                Vec::new()
            };
            Ok((own, body))
        });
        match encoded {
            Err(error) => Err(self.fail(error)),
            Ok((own, body)) => {
                let bodies = self.all_gather(&body)?;
                let received = || from_json(0, bodies.first().map_or(&[], Vec::as_slice));
                own.map_or_else(received, Ok)
            }
        }
    }

    /// Gathers the values of all ranks on the first one, in the order of the ranks.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(
        &self,
        own: Result<T>,
    ) -> Result<Option<Vec<Result<T>>>> {
        let encoded = own.and_then(|own| {
            let body = if self.is_first() {
                Vec::new()
            } else {
                to_json(&own)?
            };
            Ok((own, body))
        });
        match encoded {
            Err(error) => Err(self.fail(error)),
            Ok((own, body)) => {
                let bodies = self.all_gather(&body)?;
                if !self.is_first() {
                    return Ok(None);
                }
                let others = bodies.iter().enumerate().skip(1);
                let others = others.map(|(rank, body)| from_json(rank, body));
                Ok(Some(std::iter::once(Ok(own)).chain(others).collect()))
            }
        }
    }

    /// Sends a failure to the other ranks, which then fail too, and gives it back.
    fn fail(&self, error: Error) -> Error {
        let kind = if error.is_input() {
            FOUND_INPUT_WRONG
        } else {
            FAILED
        };
        let message = error.to_string();
        let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        // Where they cannot be reached any more, the error is still this one.
        let _ = self.send(kind, &message.as_bytes()[..end]);
        error
    }

    /// Gathers the bodies of all ranks, unless one has failed.
    fn all_gather(&self, body: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut bodies = self.send(DONE, body)?;
        for (rank, body) in bodies.iter_mut().enumerate() {
            let rest = body.split_off(body.len().min(1));
            let kind = std::mem::replace(body, rest).first().copied();
            if kind != Some(DONE) {
                return Err(Error::OtherRank {
                    rank,
                    message: String::from_utf8_lossy(body).into_owned(),
                    is_input: kind == Some(FOUND_INPUT_WRONG),
                });
            }
        }
        Ok(bodies)
    }

    fn send(&self, kind: u8, body: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.is_single() {
            return Ok(Vec::new());
        }
        let bytes = [&[kind], body].concat();
        self.exchange.gather(&bytes).map_err(Error::Exchange)
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Exchange(error.into()))
}

fn from_json<T: DeserializeOwned>(rank: usize, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::invalid_message(rank, error.to_string()))
}
