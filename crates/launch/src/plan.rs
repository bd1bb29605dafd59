//! From options, as typed, to a plan in which they fit together.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::ids::{LocalRank, MAX_LOCAL_RANKS, NodeRank};
use crate::machine::Machine;
use crate::signals::SignalSet;
use crate::spec::{Endpoint, NumNodes, RankCount, RankFilter, RunId, Seconds, StreamSpec, Streams};

/// Where the ranks of a launch on one node meet.
const LOOPBACK: &str = "127.0.0.1";

/// Port of `--master-addr` that names none; torchrun's too.
const MASTER_PORT: u16 = 29500;

/// Run id where none is given; torchrun's too.
const RUN_ID: &str = "none";

/// What every rank runs: a program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program's file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// The options of `launch`, each read and none compared with another.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// `--standalone`
    pub standalone: bool,
    /// `--nnodes`
    pub num_nodes: NumNodes,
    /// `--nproc-per-node`
    pub rank_count: RankCount,
    /// `--node-rank`
    pub node_rank: Option<NodeRank>,
    /// `--rdzv-endpoint`
    pub rdzv_endpoint: Option<Endpoint>,
    /// `--rdzv-id`
    pub rdzv_id: Option<RunId>,
    /// `--master-addr`
    pub master_addr: Option<String>,
    /// `--master-port`, never 0
    pub master_port: Option<u16>,
    /// `--max-restarts`
    pub max_restarts: u32,
    /// `--monitor-interval`
    pub monitor_interval: Seconds,
    /// `--log-dir`
    pub log_dir: Option<PathBuf>,
    /// `--redirects`
    pub redirects: Option<StreamSpec>,
    /// `--tee`
    pub tee: Option<StreamSpec>,
    /// `--local-ranks-filter`
    pub local_ranks_filter: Option<RankFilter>,
    /// `--signals-to-handle`
    pub signals: SignalSet,
}

/// How long a launch waits; the defaults are for real runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From asking the ranks to end to killing them: 30 s, as torchrun's.
    pub grace: Duration,
    /// For all nodes to join: 600 s.
    pub join: Duration,
    /// Without a sign of life, after which a node counts as lost: 30 s.
    pub heartbeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            join: Duration::from_mins(10),
            heartbeat: Duration::from_secs(30),
        }
    }
}

/// A launch in which everything fits together; made by
/// [`LaunchOptions::plan`] only.
#[derive(Clone, Debug)]
pub struct LaunchPlan {
    pub(crate) program: Program,
    pub(crate) host: String,
    pub(crate) nodes: Nodes,
    pub(crate) num_local_ranks: NonZeroU32,
    pub(crate) master_addr: String,
    /// Fixed by the user; else a free port for every attempt.
    pub(crate) master_port: Option<u16>,
    pub(crate) run_id: RunId,
    pub(crate) max_restarts: u32,
    /// How long failures are gathered before the other ranks are stopped.
    pub(crate) gather: Duration,
    pub(crate) output: OutputPlan,
    pub(crate) signals: SignalSet,
    pub(crate) timing: Timing,
}

/// The machines of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// This one.
    One,
    /// This one and others.
    Several {
        num_nodes: u32,
        /// Without one, the node whose address the endpoint is becomes node 0
        /// and the others are counted as they come.
        node_rank: Option<NodeRank>,
        endpoint: Endpoint,
    },
}

impl Nodes {
    pub(crate) fn num(&self) -> u32 {
        match self {
            Self::One => 1,
            Self::Several { num_nodes, .. } => *num_nodes,
        }
    }
}

/// Where the ranks' output goes.
#[derive(Clone, Debug)]
pub(crate) struct OutputPlan {
    pub(crate) log_dir: Option<PathBuf>,
    redirects: StreamSpec,
    tee: StreamSpec,
    filter: Option<RankFilter>,
}

/// Where one stream of a rank goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sinks {
    pub(crate) file: bool,
    pub(crate) console: bool,
}

impl OutputPlan {
    /// Where standard output and standard error of a rank go.
    pub(crate) fn sinks(&self, local_rank: LocalRank) -> (Sinks, Sinks) {
        let redirect = self.redirects.of(local_rank);
        let tee = self.tee.of(local_rank);
        let is_shown = self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.shows(local_rank));
        let sinks = |redirect: bool, tee: bool| Sinks {
            file: redirect || tee,
            // As in torchrun, a stream that is both goes to both.
            console: is_shown && (tee || !redirect),
        };
        (sinks(redirect.out, tee.out), sinks(redirect.err, tee.err))
    }

    /// Whether any rank's output may go into a file.
    pub(crate) fn has_files(&self) -> bool {
        let none = StreamSpec::all(Streams::default());
        self.redirects != none || self.tee != none
    }
}

impl LaunchOptions {
    /// Checks that the options fit together and this machine.
    ///
    /// # Errors
    /// Names the option at fault, and fails if `gpu` is asked for and there
    /// is none.
    pub fn plan(self, machine: &Machine, program: Program) -> Result<LaunchPlan, Error> {
        let num_local_ranks = self.num_local_ranks(machine)?;
        self.check_local_ranks(num_local_ranks.get())?;
        self.check_standalone()?;
        let nodes = self.nodes()?;
        let (master_addr, master_port) = self.master(&nodes)?;
        let run_id = self.run_id()?;
        let output = self.output()?;
        Ok(LaunchPlan {
            program,
            host: machine.host.clone(),
            nodes,
            num_local_ranks,
            master_addr,
            master_port,
            run_id,
            max_restarts: self.max_restarts,
            gather: self.monitor_interval.get(),
            output,
            signals: self.signals,
            timing: Timing::default(),
        })
    }

    fn num_local_ranks(&self, machine: &Machine) -> Result<NonZeroU32, Error> {
        let (what, num) = match (self.rank_count, &machine.gpus) {
            (RankCount::Count(num), _) => return Ok(num),
            (RankCount::Gpu, Err(reason)) => {
                let reason = reason.clone();
                return Err(Error::NoGpu { reason });
            }
            (RankCount::Gpu, Ok(num)) => ("gpu", *num),
            (RankCount::Auto, Ok(num)) => ("auto", *num),
            (RankCount::Auto, Err(_)) => ("auto", machine.num_cpus),
            (RankCount::Cpu, _) => ("cpu", machine.num_cpus),
        };
        u32::try_from(num.max(1))
            .ok()
            .filter(|num| *num <= MAX_LOCAL_RANKS)
            .and_then(NonZeroU32::new)
            .ok_or(Error::TooManyRanks { what, num })
    }

    fn check_local_ranks(&self, num_local_ranks: u32) -> Result<(), Error> {
        let filter = self.local_ranks_filter.as_ref();
        let named = [
            (
                "--redirects",
                self.redirects.as_ref().and_then(StreamSpec::last_named),
            ),
            ("--tee", self.tee.as_ref().and_then(StreamSpec::last_named)),
            (
                "--local-ranks-filter",
                filter.and_then(RankFilter::last_named),
            ),
        ];
        for (option, last) in named {
            if let Some(local_rank) = last.filter(|last| *last >= num_local_ranks) {
                return Err(Error::NoSuchLocalRank {
                    option,
                    local_rank,
                    num_local_ranks,
                });
            }
        }
        Ok(())
    }

    fn check_standalone(&self) -> Result<(), Error> {
        let contradicts = |option: String| Err(Error::Standalone { option });
        match (&self.rdzv_endpoint, self.node_rank) {
            _ if !self.standalone => Ok(()),
            _ if self.num_nodes != NumNodes::ONE => {
                contradicts(format!("--nnodes {}", self.num_nodes.get()))
            }
            (Some(endpoint), _) => contradicts(format!("--rdzv-endpoint {endpoint}")),
            (None, Some(rank)) if rank.get() > 0 => contradicts(format!("--node-rank {rank}")),
            _ => Ok(()),
        }
    }

    fn nodes(&self) -> Result<Nodes, Error> {
        let num_nodes = self.num_nodes.get();
        if let Some(rank) = self.node_rank.filter(|rank| rank.get() >= num_nodes) {
            return Err(Error::NodeRank {
                node_rank: rank.get(),
                num_nodes,
            });
        }
        if num_nodes == 1 {
            return Ok(Nodes::One);
        }
        let endpoint = match (&self.rdzv_endpoint, &self.master_addr) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(addr)) => {
                let port = self.master_port.unwrap_or(MASTER_PORT);
                master_endpoint(addr, port)?
            }
            (None, None) => return Err(Error::NoEndpoint { num_nodes }),
        };
        Ok(Nodes::Several {
            num_nodes,
            node_rank: self.node_rank,
            endpoint,
        })
    }

    /// Address and, where it is fixed, port of rank 0's store.
    fn master(&self, nodes: &Nodes) -> Result<(String, Option<u16>), Error> {
        let given = match &self.master_addr {
            None => None,
            Some(addr) => Some(master_endpoint(addr, MASTER_PORT)?.host().to_owned()),
        };
        match nodes {
            Nodes::One => Ok((
                given.unwrap_or_else(|| LOOPBACK.to_owned()),
                self.master_port,
            )),
            // Here `--master-port` is where the launchers meet.
            Nodes::Several { endpoint, .. } if self.rdzv_endpoint.is_none() => {
                Ok((endpoint.host().to_owned(), None))
            }
            Nodes::Several { endpoint, .. } => match self.master_port {
                Some(port) if port == endpoint.port() => Err(Error::PortTwice {
                    port,
                    endpoint: endpoint.clone(),
                }),
                port => Ok((given.unwrap_or_else(|| endpoint.host().to_owned()), port)),
            },
        }
    }

    fn run_id(&self) -> Result<RunId, Error> {
        match &self.rdzv_id {
            Some(run_id) => Ok(run_id.clone()),
            None if self.standalone => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let secs = since.unwrap_or_default().as_secs();
                format!("{secs}-{}", std::process::id()).parse()
            }
            None => RUN_ID.parse(),
        }
    }

    fn output(&self) -> Result<OutputPlan, Error> {
        if let Some(path) = self.log_dir.as_ref().filter(|path| path.is_file()) {
            let path = path.display().to_string();
            return Err(Error::LogDir { path });
        }
        let is_plain = self.redirects.is_none() && self.tee.is_none();
        let tee = if self.log_dir.is_some() && is_plain {
            // A folder for logs is there to be written to.
            Streams::BOTH
        } else {
            Streams::default()
        };
        let none = StreamSpec::all(Streams::default());
        Ok(OutputPlan {
            log_dir: self.log_dir.clone(),
            redirects: self.redirects.clone().unwrap_or(none),
            tee: self.tee.clone().unwrap_or(StreamSpec::all(tee)),
            filter: self.local_ranks_filter.clone(),
        })
    }
}

/// An address with or without brackets.
fn master_endpoint(addr: &str, port: u16) -> Result<Endpoint, Error> {
    let bare = addr
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    Endpoint::new(bare.unwrap_or(addr), port).ok_or_else(|| Error::MasterAddr {
        addr: addr.to_owned(),
    })
}

impl LaunchPlan {
    /// The same launch with other time spans.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The signals that end it.
    pub fn signals(&self) -> &SignalSet {
        &self.signals
    }

    /// Ranks on this node.
    pub fn num_local_ranks(&self) -> u32 {
        self.num_local_ranks.get()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
