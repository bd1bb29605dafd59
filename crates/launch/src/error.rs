use std::io;
use std::time::Duration;

use crate::endpoint::Endpoint;

/// Errors of a launch other than a failure of its ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, a pipe or a thread failed; the message names it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The value of `--redirects` or `--tee` cannot be read.
    #[error(
        "must be 0 (neither stream), 1 (stdout), 2 (stderr) or 3 (both), or a list by local rank such as `0:1,1:3`"
    )]
    StreamSpec,
    /// A list names a local rank twice.
    #[error("local rank {rank} is named twice")]
    RankTwice {
        /// The local rank.
        rank: u32,
    },
    /// The value of `--local-ranks-filter` cannot be read.
    #[error("must be a list of local ranks such as `0,2`")]
    RankFilter,
    /// The value of `--nnodes` cannot be read.
    #[error("must be a number of nodes from 1 to 4096")]
    NumNodes,
    /// The value of `--nnodes` is a range.
    #[error("the number of nodes cannot change during a launch; give one number, such as `2`")]
    ElasticNodes,
    /// The value of `--nproc-per-node` cannot be read.
    #[error("must be a number of ranks from 1 to 1024, or `gpu`, `cpu` or `auto`")]
    RankCount,
    /// The value of `--rdzv-endpoint` cannot be read.
    #[error("must be `HOST:PORT`, with an IPv6 address in brackets")]
    Endpoint,
    /// The value of `--rdzv-id` is no name of a folder.
    #[error("must be up to 128 letters, digits and `-_.`, not beginning with a dot")]
    RunId,
    /// The value of `--signals-to-handle` cannot be read.
    #[error("must be a list of SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2")]
    SignalSet,
    /// The value of `--monitor-interval` cannot be read.
    #[error("must be a number of seconds above 0 and up to 3600")]
    Seconds,
    /// A rank for every GPU is asked for, and there is none.
    #[error("`--nproc-per-node gpu`: {reason}")]
    NoGpu {
        /// Where GPUs were looked for.
        reason: String,
    },
    /// More ranks than a node may have.
    #[error("`--nproc-per-node {what}` makes {num} ranks, more than the bound of 1024")]
    TooManyRanks {
        /// The value.
        what: &'static str,
        /// Ranks that it stands for.
        num: usize,
    },
    /// An option names a local rank that there is not.
    #[error(
        "`{option}` names local rank {local_rank}, which must be below the ranks of this node: {num_local_ranks}"
    )]
    NoSuchLocalRank {
        /// The option.
        option: &'static str,
        /// The local rank.
        local_rank: u32,
        /// Ranks on this node.
        num_local_ranks: u32,
    },
    /// `--node-rank` is not below `--nnodes`.
    #[error("`--node-rank {node_rank}` must be below `--nnodes {num_nodes}`")]
    NodeRank {
        /// The given rank.
        node_rank: u32,
        /// The given number.
        num_nodes: u32,
    },
    /// `--standalone` beside an option of several nodes.
    #[error("`--standalone` is one node on its own and contradicts `{option}`")]
    Standalone {
        /// The other option, with its value.
        option: String,
    },
    /// Several nodes, and no address to meet at.
    #[error("`--nnodes {num_nodes}` needs the address of node 0")]
    NoEndpoint {
        /// The given number.
        num_nodes: u32,
    },
    /// One port for two purposes.
    #[error("`--master-port {port}` is the port of `--rdzv-endpoint {endpoint}` too")]
    PortTwice {
        /// The port.
        port: u16,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The host of an address is no host.
    #[error("`--master-addr {addr}` is no host name or address")]
    MasterAddr {
        /// The given text.
        addr: String,
    },
    /// A folder for logs is a file.
    #[error("`--log-dir {path}` is not a folder")]
    LogDir {
        /// The given path.
        path: String,
    },
    /// A folder for logs cannot be made.
    #[error("`--log-dir`: {source}")]
    NoLogDir {
        /// The system's reason; it names the folder.
        source: io::Error,
    },
    /// Node 0 cannot listen for the other nodes.
    #[error("node 0 cannot listen for the other nodes on port {port}: {source}")]
    Listen {
        /// The port of the endpoint.
        port: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// The host of an address has none.
    #[error("`{what}`: host `{host}` cannot be resolved: {reason}")]
    UnknownHost {
        /// The option or variable.
        what: &'static str,
        /// The host.
        host: String,
        /// The system's reason.
        reason: String,
    },
    /// Node 0 was not reached in time.
    #[error("cannot reach node 0 at {endpoint} within {} s: {reason}", waited.as_secs())]
    Unreachable {
        /// Where node 0 should be.
        endpoint: Endpoint,
        /// How long it was tried.
        waited: Duration,
        /// Why the last attempt failed.
        reason: String,
    },
    /// Node 0 does not take this node.
    #[error("node 0 at {endpoint} refused this node: {reason}")]
    Refused {
        /// Where node 0 is.
        endpoint: Endpoint,
        /// The option that differs.
        reason: String,
    },
    /// Something else answers where node 0 should be.
    #[error("what listens at {endpoint} is not the launcher of this program: {reason}")]
    NotALauncher {
        /// Where node 0 should be.
        endpoint: Endpoint,
        /// Fault of its answer.
        reason: String,
    },
    /// A variable of a rank's environment is absent or wrong.
    #[error("environment variable `{name}` {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// The fault, with the value.
        reason: String,
    },
    /// The launcher of this rank has ended.
    #[error("the launcher of this rank, process {pid}, has ended")]
    LauncherEnded {
        /// The launcher's process id.
        pid: i32,
    },
}

impl Error {
    /// Whether what was typed or set is at fault, and the same again would
    /// fail again.
    pub fn is_input(&self) -> bool {
        !matches!(
            self,
            Self::Io(_) | Self::Unreachable { .. } | Self::LauncherEnded { .. }
        )
    }

    /// Remedy.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoLogDir { .. } => "give a folder that can be made and written",
            Self::NoGpu { .. } => {
                "`--nproc-per-node cpu` takes the CPUs, `auto` what there is, and a number is taken as it is"
            }
            Self::TooManyRanks { .. } => "give the number of ranks",
            Self::Standalone { .. } => "leave out one of the two",
            Self::NodeRank { .. } => {
                "nodes are counted from 0; node 0 is the one that the others connect to"
            }
            Self::NoEndpoint { .. } => {
                "give `--rdzv-endpoint HOST:PORT` with the same host, that of node 0, on every node"
            }
            Self::PortTwice { .. } => {
                "give another port, or leave `--master-port` out: a free one is chosen"
            }
            Self::Listen { .. } => "give a free port in `--rdzv-endpoint` on every node",
            Self::UnknownHost { .. } => {
                "check the name, and whether this machine knows it (`getent hosts NAME`), or give an address"
            }
            Self::Unreachable { .. } => {
                "is the launcher of node 0 running, and does `--rdzv-endpoint` name its host? may this machine connect to it?"
            }
            Self::Refused { .. } => {
                "give the same `--nnodes` and `--rdzv-id` on every node, each node a `--node-rank` of its own, and the same program"
            }
            Self::NotALauncher { .. } => {
                "give in `--rdzv-endpoint` a port that nothing else listens on"
            }
            Self::Variable { .. } => {
                "start ranks with `asyncthink-train launch` or with `torchrun --no-python`; for a single process unset `RANK`, \
                 `WORLD_SIZE` and `LOCAL_RANK`"
            }
            _ => return None,
        })
    }
}
