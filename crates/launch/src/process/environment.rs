//! Environment variables of a rank, those of torchrun.

use std::ffi::OsString;
use std::path::Path;

use crate::ids::{LocalRank, NodeShare};
use crate::plan::LaunchPlan;
use crate::rank::LAUNCHER_PID;
use crate::wire::Start;

/// The one role that this launcher knows; torchrun's default.
const ROLE: &str = "default";

/// Variables of one rank; `inherited` says what the launcher itself has.
///
/// `OMP_NUM_THREADS` is 1 beside other ranks unless it is set, because every
/// rank would take all cores otherwise.
pub(crate) fn rank_environment(
    plan: &LaunchPlan,
    start: &Start,
    share: &NodeShare,
    local_rank: LocalRank,
    error_file: &Path,
    inherited: impl Fn(&str) -> bool,
) -> Vec<(&'static str, OsString)> {
    let rank = share.rank(local_rank).to_string();
    let world_size = start.world_size.to_string();
    let variables = [
        ("RANK", rank.clone()),
        ("LOCAL_RANK", local_rank.to_string()),
        ("WORLD_SIZE", world_size.clone()),
        ("LOCAL_WORLD_SIZE", share.num_local_ranks.to_string()),
        ("GROUP_RANK", start.node_rank.to_string()),
        ("GROUP_WORLD_SIZE", start.num_nodes.to_string()),
        ("ROLE_NAME", ROLE.to_owned()),
        ("ROLE_RANK", rank),
        ("ROLE_WORLD_SIZE", world_size),
        ("MASTER_ADDR", start.master_addr.clone()),
        ("MASTER_PORT", start.master_port.to_string()),
        ("TORCHELASTIC_RESTART_COUNT", start.attempt.to_string()),
        ("TORCHELASTIC_MAX_RESTARTS", start.max_restarts.to_string()),
        ("TORCHELASTIC_RUN_ID", plan.run_id.as_str().to_owned()),
        // Rank 0 hosts the store; this launcher has none.
        ("TORCHELASTIC_USE_AGENT_STORE", "False".to_owned()),
        (LAUNCHER_PID, std::process::id().to_string()),
    ];
    let mut variables: Vec<(&'static str, OsString)> = variables
        .into_iter()
        .map(|(name, value)| (name, value.into()))
        .collect();
    variables.push(("TORCHELASTIC_ERROR_FILE", error_file.into()));
    // As torchrun: a collective that fails ends the process.
    for (name, is_default) in [
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", true),
        ("OMP_NUM_THREADS", share.num_local_ranks.get() > 1),
    ] {
        if is_default && !inherited(name) {
            variables.push((name, "1".into()));
        }
    }
    variables
}
