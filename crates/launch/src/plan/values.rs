//! The values of the options, each in the form that torchrun takes.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::ids::{LocalRank, MAX_LOCAL_RANKS, MAX_NODES};

/// Port of a rendezvous endpoint that names none; torchrun's too.
const ENDPOINT_PORT: u16 = 29400;

/// Longest run id, which is the name of a folder.
const MAX_RUN_ID_BYTES: usize = 128;

/// Which of a rank's two streams are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard output.
    pub out: bool,
    /// Standard error.
    pub err: bool,
}

impl Streams {
    /// Both streams.
    pub const BOTH: Self = Self {
        out: true,
        err: true,
    };

    fn parse(text: &str) -> Option<Self> {
        let (out, err) = match text {
            "0" => (false, false),
            "1" => (true, false),
            "2" => (false, true),
            "3" => (true, true),
            _ => return None,
        };
        Some(Self { out, err })
    }
}

/// The value of `--redirects` and `--tee`: the streams of all ranks, such as
/// `3`, or of some, such as `0:1,1:3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec(Spec);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    All(Streams),
    Each(BTreeMap<u32, Streams>),
}

impl StreamSpec {
    /// The same streams of all ranks.
    pub fn all(streams: Streams) -> Self {
        Self(Spec::All(streams))
    }

    /// The streams of one rank; those of a rank that is not named are neither.
    pub fn of(&self, local_rank: LocalRank) -> Streams {
        match &self.0 {
            Spec::All(streams) => *streams,
            Spec::Each(streams) => streams.get(&local_rank.get()).copied().unwrap_or_default(),
        }
    }

    /// The highest local rank that is named.
    pub(crate) fn last_named(&self) -> Option<u32> {
        match &self.0 {
            Spec::All(_) => None,
            Spec::Each(streams) => streams.keys().next_back().copied(),
        }
    }
}

impl FromStr for StreamSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(streams) = Streams::parse(text) {
            return Ok(Self::all(streams));
        }
        let mut each = BTreeMap::new();
        for item in text.split(',') {
            let parsed = item.split_once(':').and_then(|(rank, streams)| {
                let rank = parse_number(rank).filter(|rank| *rank < MAX_LOCAL_RANKS)?;
                Some((rank, Streams::parse(streams)?))
            });
            let (rank, streams) = parsed.ok_or(Error::StreamSpec)?;
            if each.insert(rank, streams).is_some() {
                return Err(Error::RankTwice { rank });
            }
        }
        Ok(Self(Spec::Each(each)))
    }
}

/// The value of `--local-ranks-filter`: the local ranks that the console shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankFilter(BTreeSet<u32>);

impl RankFilter {
    /// Whether the console shows a rank.
    pub fn shows(&self, local_rank: LocalRank) -> bool {
        self.0.contains(&local_rank.get())
    }

    pub(crate) fn last_named(&self) -> Option<u32> {
        self.0.last().copied()
    }
}

impl FromStr for RankFilter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let ranks = text.split(',').map(parse_number);
        let ranks: Option<BTreeSet<u32>> = ranks.collect();
        ranks.map(Self).ok_or(Error::RankFilter)
    }
}

/// The value of `--nnodes`: a number, or torchrun's `N:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumNodes(NonZeroU32);

impl NumNodes {
    /// One machine.
    pub const ONE: Self = Self(NonZeroU32::MIN);

    /// The number of nodes, at least 1.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl FromStr for NumNodes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = |text: &str| {
            let number = parse_number(text).filter(|number| *number <= MAX_NODES);
            number.and_then(NonZeroU32::new).ok_or(Error::NumNodes)
        };
        match text.split_once(':') {
            None => number(text).map(Self),
            Some((min, max)) => {
                let (min, max) = (number(min)?, number(max)?);
                if min == max {
                    Ok(Self(max))
                } else {
                    Err(Error::ElasticNodes)
                }
            }
        }
    }
}

/// The value of `--nproc-per-node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankCount {
    /// That many ranks.
    Count(NonZeroU32),
    /// A rank for every GPU that can be seen.
    Gpu,
    /// A rank for every CPU that can be used.
    Cpu,
    /// `Gpu` where there is one, else `Cpu`.
    Auto,
}

impl FromStr for RankCount {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "gpu" => Ok(Self::Gpu),
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            number => parse_number(number)
                .filter(|number| *number <= MAX_LOCAL_RANKS)
                .and_then(NonZeroU32::new)
                .map(Self::Count)
                .ok_or(Error::RankCount),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(Error::Endpoint)?;
            let port = match rest.strip_prefix(':') {
                None if rest.is_empty() => None,
                None => return Err(Error::Endpoint),
                port => port,
            };
            (host, port)
        } else {
            match text.split_once(':') {
                None => (text, None),
                Some((host, port)) => (host, Some(port)),
            }
        };
        let port = match port {
            None => ENDPOINT_PORT,
            Some(port) => port.parse().map_err(|_| Error::Endpoint)?,
        };
        Self::new(host, port).ok_or(Error::Endpoint)
    }
}

/// The name of a launch: all its nodes give the same one, and its logs lie in
/// a folder of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let is_name = !text.is_empty()
            && text.len() <= MAX_RUN_ID_BYTES
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::RunId)
        }
    }
}

/// A time span above zero, in seconds: the value of `--monitor-interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(Duration);

impl Seconds {
    /// The span.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Seconds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse()
            .ok()
            .filter(|secs| *secs > 0.0 && *secs <= 3600.0)
            .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
            .map(Self)
            .ok_or(Error::Seconds)
    }
}

/// Digits only: `u32::from_str` takes a sign too.
fn parse_number(text: &str) -> Option<u32> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<T: FromStr<Err = Error>>(text: &str) -> Option<T> {
        text.parse().ok()
    }

    #[test]
    fn streams_as_torchrun_writes_them() {
        let spec: StreamSpec = parse("0:1,1:3").expect("a list");
        let out = Streams {
            out: true,
            err: false,
        };
        assert_eq!(spec.of(LocalRank::new(0)), out);
        assert_eq!(spec.of(LocalRank::new(1)), Streams::BOTH);
        assert_eq!(spec.of(LocalRank::new(2)), Streams::default());
        let all: StreamSpec = parse("2").expect("a number");
        assert!(all.of(LocalRank::new(7)).err && !all.of(LocalRank::new(7)).out);
        for wrong in ["", "4", "-1", "+1", "0:4", "0:1,", "0:1,0:2", "a:1", "0 :1"] {
            assert_eq!(parse::<StreamSpec>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers_of_nodes_and_ranks() {
        assert_eq!(parse("1:1"), Some(NumNodes::ONE));
        assert_eq!(parse::<NumNodes>("3").map(NumNodes::get), Some(3));
        assert!(matches!(
            "1:4".parse::<NumNodes>(),
            Err(Error::ElasticNodes)
        ));
        for wrong in ["0", "", "4097", "+1", "1:", "1:1:1"] {
            assert_eq!(parse::<NumNodes>(wrong), None, "{wrong}");
        }
        assert_eq!(parse("gpu"), Some(RankCount::Gpu));
        assert_eq!(parse("4"), NonZeroU32::new(4).map(RankCount::Count));
        for wrong in ["0", "1025", "xpu", "GPU", "-1"] {
            assert_eq!(parse::<RankCount>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn endpoints() {
        let show = |text: &str| parse::<Endpoint>(text).map(|endpoint| endpoint.to_string());
        assert_eq!(show("node0:1234").as_deref(), Some("node0:1234"));
        assert_eq!(show("node0").as_deref(), Some("node0:29400"));
        assert_eq!(show("[::1]:80").as_deref(), Some("[::1]:80"));
        assert_eq!(show("[::1]").as_deref(), Some("[::1]:29400"));
        for wrong in [
            "", ":1", "a:0", "a:x", "a:70000", "::1", "[::1", "[::1]80", "a b:1",
        ] {
            assert_eq!(show(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn run_ids_are_names_of_folders() {
        for right in ["none", "job-17_a.b"] {
            assert!(parse::<RunId>(right).is_some(), "{right}");
        }
        for wrong in ["", "..", ".a", "a/b", "a b", "ä"] {
            assert_eq!(parse::<RunId>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn seconds_are_above_zero() {
        assert_eq!(
            parse::<Seconds>("0.1").map(Seconds::get),
            Some(Duration::from_millis(100))
        );
        for wrong in ["0", "-1", "nan", "inf", "1e9", ""] {
            assert_eq!(parse::<Seconds>(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn stream_lists_are_read_as_written(
            ranks in prop::collection::btree_map(0_u32..MAX_LOCAL_RANKS, 0_u8..4, 1..9),
        ) {
            let items: Vec<String> = ranks.iter().map(|(rank, code)| format!("{rank}:{code}")).collect();
            let spec: StreamSpec = items.join(",").parse().expect("a list");
            for rank in 0..MAX_LOCAL_RANKS {
                let code = ranks.get(&rank).copied().unwrap_or(0);
                let streams = spec.of(LocalRank::new(rank));
                prop_assert_eq!(u8::from(streams.out) + 2 * u8::from(streams.err), code);
            }
        }

        #[test]
        fn no_text_panics(text in "[0-3:,+\\[\\]a. ]{0,12}") {
            let _ = text.parse::<StreamSpec>();
            let _ = text.parse::<RankFilter>();
            let _ = text.parse::<NumNodes>();
            let _ = text.parse::<RankCount>();
            let _ = text.parse::<Endpoint>();
            let _ = text.parse::<RunId>();
            let _ = text.parse::<Seconds>();
        }
    }
}
