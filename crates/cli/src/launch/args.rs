//! Arguments of `launch`.

use std::ffi::OsString;
use std::path::PathBuf;

use asyncthink_launch::{
    Endpoint, LaunchOptions, NodeRank, NumNodes, RankCount, RankFilter, RunId, Seconds, SignalSet,
    StreamSpec,
};
use clap::{Args, value_parser};

#[derive(Debug, Args)]
#[command(
    after_help = "The options are torchrun's, with its defaults. docs/distributed.md has examples and the differences."
)]
pub(crate) struct LaunchArgs {
    /// One node on its own, with a run id of its own
    #[arg(long)]
    standalone: bool,

    /// Nodes, each of which runs this command
    #[arg(long, value_name = "N", default_value = "1")]
    nnodes: NumNodes,

    /// Ranks on this node: a number, or one for every GPU or CPU; `auto` is GPUs where there are any
    #[arg(
        long,
        value_name = "N|gpu|cpu|auto",
        default_value = "1",
        alias = "nproc_per_node"
    )]
    nproc_per_node: RankCount,

    /// This node among all, from 0. By default the node at the rendezvous endpoint is node 0, and
    /// the others are counted as they come
    #[arg(long, value_name = "K", alias = "node_rank")]
    node_rank: Option<NodeRank>,

    /// Where node 0 listens for the other nodes; the port is 29400 by default
    #[arg(long, value_name = "HOST:PORT", alias = "rdzv_endpoint")]
    rdzv_endpoint: Option<Endpoint>,

    /// Name of the launch, the same on every node; also of the folder of its logs [default: none,
    /// with `--standalone` one that is unique]
    #[arg(long, value_name = "ID", alias = "rdzv_id")]
    rdzv_id: Option<RunId>,

    /// Where the ranks meet [default: the host of the rendezvous endpoint, or 127.0.0.1]
    #[arg(long, value_name = "HOST", alias = "master_addr")]
    master_addr: Option<String>,

    /// Port at which the ranks meet; without `--rdzv-endpoint`, the port at which the nodes do
    /// [default: a free one for every attempt]
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..), alias = "master_port")]
    master_port: Option<u16>,

    /// How often all ranks are started again after one has failed; they go on from the last
    /// complete checkpoint
    #[arg(long, value_name = "N", default_value_t = 0, alias = "max_restarts")]
    max_restarts: u32,

    /// Seconds from the first failure to stopping the other ranks, in which failures are gathered
    #[arg(
        long,
        value_name = "SECS",
        default_value = "0.1",
        alias = "monitor_interval"
    )]
    monitor_interval: Seconds,

    /// Folder for the output and the errors of every rank; without `--redirects` and `--tee`, both
    /// streams of all ranks
    #[arg(long, value_name = "DIR", alias = "log_dir")]
    log_dir: Option<PathBuf>,

    /// Streams that go into a file and not to the console: 0 none, 1 stdout, 2 stderr, 3 both, or
    /// by local rank, such as `0:1,1:3`
    #[arg(short, long, value_name = "STREAMS")]
    redirects: Option<StreamSpec>,

    /// Streams that go into a file as well, in the same form
    #[arg(short, long, value_name = "STREAMS")]
    tee: Option<StreamSpec>,

    /// Local ranks whose output the console shows, such as `0,2` [default: all]
    #[arg(long, value_name = "RANKS", alias = "local_ranks_filter")]
    local_ranks_filter: Option<RankFilter>,

    /// Signals that stop the ranks
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        alias = "signals_to_handle"
    )]
    signals_to_handle: SignalSet,

    /// What every rank runs, such as `grpo RECIPE`: a command of this program
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

impl LaunchArgs {
    pub(super) fn options(&self) -> LaunchOptions {
        LaunchOptions {
            standalone: self.standalone,
            num_nodes: self.nnodes,
            rank_count: self.nproc_per_node,
            node_rank: self.node_rank,
            rdzv_endpoint: self.rdzv_endpoint.clone(),
            rdzv_id: self.rdzv_id.clone(),
            master_addr: self.master_addr.clone(),
            master_port: self.master_port,
            max_restarts: self.max_restarts,
            monitor_interval: self.monitor_interval,
            log_dir: self.log_dir.clone(),
            redirects: self.redirects.clone(),
            tee: self.tee.clone(),
            local_ranks_filter: self.local_ranks_filter.clone(),
            signals: self.signals_to_handle.clone(),
        }
    }
}
