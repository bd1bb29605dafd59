//! From options, as typed, to a plan in which they fit together.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::SystemTime;

use super::launch_plan::{LaunchPlan, Nodes, OutputPlan, Program, Timing};
use super::machine::Machine;
use super::signal::SignalSet;
use super::values::{NumNodes, RankCount, RankFilter, RunId, Seconds, StreamSpec, Streams};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::ids::{MAX_LOCAL_RANKS, NodeRank};

/// Where the ranks of a launch on one node meet.
const LOOPBACK: &str = "127.0.0.1";

/// Port of `--master-addr` that names none; torchrun's too.
const MASTER_PORT: u16 = 29500;

/// Run id where none is given; torchrun's too.
const RUN_ID: &str = "none";

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

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
