//! The ranks that make the files together.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Longest message of a failure that is told to the other ranks.
const MAX_MESSAGE_BYTES: usize = 4096;

/// First byte of what a rank sends: what follows it.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const FOUND_INPUT_WRONG: u8 = 2;

/// The processes that run the stage together, as one of them sees it.
pub trait Peers {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world_size(&self) -> usize;

    /// The bytes of every rank, in the order of the ranks; lengths may differ. All ranks call it.
    ///
    /// # Errors
    /// When a rank is lost.
    fn gather(
        &self,
        bytes: &[u8],
    ) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>;
}

/// A process on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alone;

impl Peers for Alone {
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

/// Which of a row of items are a rank's: every `world_size`-th.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stride {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
}

impl Stride {
    /// Of a process on its own.
    pub(crate) const ALL: Self = Self {
        rank: 0,
        world_size: 1,
    };

    pub(crate) fn holds(self, index: usize) -> bool {
        self.rank_of(index) == self.rank
    }

    /// The rank whose item it is.
    pub(crate) fn rank_of(self, index: usize) -> usize {
        index % self.world_size
    }
}

/// What the stage says to the other ranks. Every exchange also tells them of a failure, so that all end where one does.
pub(crate) struct Talk<'a> {
    peers: &'a dyn Peers,
}

impl<'a> Talk<'a> {
    pub(crate) fn new(peers: &'a dyn Peers) -> Self {
        Self { peers }
    }

    pub(crate) fn is_first(&self) -> bool {
        self.peers.rank() == 0
    }

    pub(crate) fn stride(&self) -> Stride {
        Stride {
            rank: self.peers.rank(),
            world_size: self.peers.world_size(),
        }
    }

    fn is_alone(&self) -> bool {
        self.peers.world_size() == 1
    }

    /// Fails on every rank where one has failed; whoever failed keeps its own error.
    pub(crate) fn agree<T>(&self, own: Result<T>) -> Result<T> {
        match own {
            Ok(value) => self.exchange(&[]).map(|_| value),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// What the first rank has, on every rank. The others bring nothing, or their failure.
    pub(crate) fn tell<T: Serialize + DeserializeOwned>(
        &self,
        own: Result<Option<T>>,
    ) -> Result<T> {
        let encoded = own.and_then(|own| {
            let needs_bytes = own.is_some() && !self.is_alone();
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
                let bodies = self.exchange(&body)?;
                let told = || from_json(0, bodies.first().map_or(&[], Vec::as_slice));
                own.map_or_else(told, Ok)
            }
        }
    }

    /// The shares of all ranks, in the order of the ranks, on the first of them.
    pub(crate) fn collect<T: Serialize + DeserializeOwned>(
        &self,
        own: T,
    ) -> Result<Option<Vec<Result<T>>>> {
        if !self.is_first() {
            return match to_json(&own) {
                Ok(body) => self.exchange(&body).map(|_| None),
                Err(error) => Err(self.fail(error)),
            };
        }
        let bodies = self.exchange(&[])?;
        let others = bodies.iter().enumerate().skip(1);
        let others = others.map(|(rank, body)| from_json(rank, body));
        Ok(Some(std::iter::once(Ok(own)).chain(others).collect()))
    }

    /// Tells the others of a failure, who then fail too, and hands it back.
    fn fail(&self, error: Error) -> Error {
        let kind = if error.is_input() {
            FOUND_INPUT_WRONG
        } else {
            FAILED
        };
        let message = error.to_string();
        let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        // Where they cannot be told any more, the error is still this one.
        let _ = self.send(kind, &message.as_bytes()[..end]);
        error
    }

    /// What all ranks bring, unless one has failed.
    fn exchange(&self, body: &[u8]) -> Result<Vec<Vec<u8>>> {
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
        if self.is_alone() {
            return Ok(Vec::new());
        }
        let bytes = [&[kind], body].concat();
        self.peers.gather(&bytes).map_err(Error::Exchange)
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Exchange(error.into()))
}

fn from_json<T: DeserializeOwned>(rank: usize, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| wrong(rank, error.to_string()))
}

/// What a rank sent is wrong.
pub(crate) fn wrong(rank: usize, reason: impl Into<String>) -> Error {
    let reason = reason.into();
    Error::Share { rank, reason }
}
