//! Where the tokens of agents come from: our own engine, or anything else that decodes.
//!
//! One file per backend. A backend knows ids and nothing of tags, roles or episodes.

pub(crate) mod engine;
pub(crate) mod scripted;

use asyncthink_data::TokenId;
use asyncthink_engine::{AgentId, Request};

use crate::error::Result;

/// A token that an agent has decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AgentToken {
    /// The agent.
    pub agent: AgentId,
    /// The token.
    pub token: TokenId,
    /// Natural log of its probability under the distribution that it was sampled from, if the backend tells it. Episodes
    /// without log-probs can be evaluated, not trained on.
    pub logprob: Option<f32>,
}

/// Decodes for many agents at once.
///
/// Tokens may come in any portions: [`crate::rollout`] puts them in the order of decoding steps, so that an episode does not
/// depend on how fast a backend is, nor on what it delivers together. Latency is counted in tokens by the protocol.
pub trait AgentBackend {
    /// Admits an agent and begins to decode after its prompt.
    ///
    /// # Errors
    /// When the backend is full, or refuses the prompt.
    fn start(&mut self, request: Request) -> Result<()>;

    /// Cuts the agent's context after its first `keep_tokens` tokens, appends `ids` and decodes on from there. What the agent
    /// decoded beyond the cut and has not been asked for yet is void.
    ///
    /// # Errors
    /// When the agent is unknown or would outgrow the model's context.
    fn inject(&mut self, agent: AgentId, keep_tokens: usize, ids: &[TokenId]) -> Result<()>;

    /// Stops decoding for an agent until text is injected.
    ///
    /// # Errors
    /// When the agent is unknown.
    fn pause(&mut self, agent: AgentId) -> Result<()>;

    /// Hears that an agent has decoded far more than was taken, as others of its episode lag behind: it need not decode until
    /// [`Self::resume`]. Ignored unless the backend wants to save the work.
    ///
    /// # Errors
    /// When the agent is unknown.
    fn hold(&mut self, _agent: AgentId) -> Result<()> {
        Ok(())
    }

    /// Hears that an agent that was held should decode on.
    ///
    /// # Errors
    /// When the agent is unknown.
    fn resume(&mut self, _agent: AgentId) -> Result<()> {
        Ok(())
    }

    /// Forgets an agent.
    ///
    /// # Errors
    /// When the agent is unknown.
    fn cancel(&mut self, agent: AgentId) -> Result<()>;

    /// Waits until some agent has decoded something and returns it: the tokens of one agent in their order, agents in any.
    /// There is at least one token while an agent decodes.
    ///
    /// # Errors
    /// When decoding fails.
    fn poll(&mut self) -> Result<Vec<AgentToken>>;

    /// Agents that can still be admitted.
    fn num_free(&self) -> usize;

    /// Most tokens that one agent's context may hold.
    fn max_sequence_tokens(&self) -> usize;
}
