//! Exchange between the ranks that make the files together.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Error of another rank or of the exchange itself.
pub type ExchangeError = Box<dyn std::error::Error + Send + Sync>;

/// Failure of a rank, as the others learn it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankFailure {
    /// Message of the error.
    pub message: String,
    /// Whether the rank found its input wrong.
    pub is_input: bool,
}

/// All-gather and agreement between ranks, by whichever library connects them.
pub trait Exchange {
    /// Rank of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Gathers the bytes of every rank, in the order of the ranks; lengths may differ. All ranks call it.
    ///
    /// # Errors
    /// When a rank is lost.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// Failure of the first rank that has one, with its rank. All ranks call it, each with its own failure if it has one.
    ///
    /// # Errors
    /// When a rank is lost.
    fn first_failure(
        &self,
        own: Option<&RankFailure>,
    ) -> Result<Option<(usize, RankFailure)>, ExchangeError>;
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

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(vec![bytes.to_vec()])
    }

    fn first_failure(
        &self,
        own: Option<&RankFailure>,
    ) -> Result<Option<(usize, RankFailure)>, ExchangeError> {
        Ok(own.map(|failure| (0, failure.clone())))
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

/// Typed messages between ranks. They agree before every exchange, so that all ranks fail where one does.
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
        if self.is_single() {
            return own;
        }
        let failure = own.as_ref().err().map(|error| RankFailure {
            message: error.to_string(),
            is_input: error.is_input(),
        });
        let first = self.exchange.first_failure(failure.as_ref());
        match (own, first.map_err(Error::Exchange)) {
            (Err(own), _) => Err(own),
            (Ok(_), Err(lost)) => Err(lost),
            (Ok(value), Ok(None)) => Ok(value),
            (Ok(_), Ok(Some((rank, RankFailure { message, is_input })))) => Err(Error::OtherRank {
                rank,
                message,
                is_input,
            }),
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
        let (own, body) = self.agree(encoded)?;
        let bodies = self.all_gather(&body)?;
        let received = || from_json(0, bodies.first().map_or(&[], Vec::as_slice));
        own.map_or_else(received, Ok)
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
        let (own, body) = self.agree(encoded)?;
        let bodies = self.all_gather(&body)?;
        if !self.is_first() {
            return Ok(None);
        }
        let others = bodies.iter().enumerate().skip(1);
        let others = others.map(|(rank, body)| from_json(rank, body));
        Ok(Some(std::iter::once(Ok(own)).chain(others).collect()))
    }

    fn all_gather(&self, body: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.is_single() {
            return Ok(Vec::new());
        }
        self.exchange.gather(body).map_err(Error::Exchange)
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Exchange(error.into()))
}

fn from_json<T: DeserializeOwned>(rank: usize, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::invalid_message(rank, error.to_string()))
}
