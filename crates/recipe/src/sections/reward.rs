//! `[grpo.reward]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, is_one, one, yes};

/// `[grpo.reward]`: accuracy plus `lambda` times `min(eta/c, tau) / tau`, or
/// `format_error` where the episode breaks the protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSection {
    /// Weight of the concurrency reward. The paper gives no number. Default
    /// 0.2: below one solution of four, so that speed never pays for a wrong
    /// answer.
    #[serde(default = "crate::defaults::lambda")]
    #[schemars(range(min = 0.0))]
    pub lambda: f64,
    /// Concurrency ratio eta/c from which more earns nothing. The paper gives
    /// no number. Must exceed 1/c, the ratio of an organizer that works
    /// alone. Default 0.9.
    #[serde(default = "crate::defaults::tau")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub tau: f64,
    /// Reward of an episode with a format error. The paper gives no number.
    /// Must be below what the least valid episode earns: 0 with
    /// `gate_concurrency`. Default -0.2: below a valid wrong answer, so that
    /// groups without a right answer teach the format, and not so low that
    /// the model stops forking.
    #[serde(default = "crate::defaults::format_error")]
    pub format_error: f64,
    /// Pay the concurrency reward only where accuracy is above 0. Default
    /// true: otherwise fast wrong answers are what is learnt first.
    #[serde(default = "yes")]
    pub gate_concurrency: bool,
    /// Count the tokens of workers that are never joined in the rewarded
    /// eta/c. Default true, the paper's measure: a Fork that is never joined
    /// then raises it for nothing. `false`, as in the quickstart, takes that
    /// gain away.
    #[serde(default = "yes")]
    pub count_unjoined: bool,
    /// Weight of the concurrency reward at the last step; between, it moves
    /// in a straight line from `lambda`. Absent means that it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub lambda_final: Option<f64>,
    /// Last tokens before a token limit in which an agent's penalty rises
    /// from 0 to `overlong_penalty` (soft overlong punishment, DAPO). The
    /// worst agent's is taken off the episode's reward. Absent means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub overlong_buffer_tokens: Option<usize>,
    /// Penalty at the token limit, with `overlong_buffer_tokens`. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(extend("default" = 1.0, "exclusiveMinimum" = 0.0))]
    pub overlong_penalty: f64,
}

impl Default for RewardSection {
    fn default() -> Self {
        Self {
            lambda: crate::defaults::lambda(),
            tau: crate::defaults::tau(),
            format_error: crate::defaults::format_error(),
            gate_concurrency: yes(),
            count_unjoined: yes(),
            lambda_final: None,
            overlong_buffer_tokens: None,
            overlong_penalty: one(),
        }
    }
}
