//! Size, scale and place of low-rank adapters (LoRA, arXiv:2106.09685).
//!
//! A projection `W` `[out, in]` is used as `W + scale * B A`, with `A` `[rank, in]` and `B` `[out, rank]`; `W` stays as it is.

use std::collections::BTreeSet;

/// A projection that can have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraTarget {
    /// `mlp.down_proj`
    Down,
    /// `mlp.gate_proj`
    Gate,
    /// `self_attn.k_proj`
    Key,
    /// `self_attn.o_proj`
    Output,
    /// `self_attn.q_proj`
    Query,
    /// `mlp.up_proj`
    Up,
    /// `self_attn.v_proj`
    Value,
}

impl LoraTarget {
    /// Every projection of a layer.
    pub const ALL: [Self; 7] = [
        Self::Down,
        Self::Gate,
        Self::Key,
        Self::Output,
        Self::Query,
        Self::Up,
        Self::Value,
    ];

    /// The module's name inside a layer, for instance `self_attn.q_proj`.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::Down => "mlp.down_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Key => "self_attn.k_proj",
            Self::Output => "self_attn.o_proj",
            Self::Query => "self_attn.q_proj",
            Self::Up => "mlp.up_proj",
            Self::Value => "self_attn.v_proj",
        }
    }

    /// The name in `target_modules`, for instance `q_proj`.
    pub fn name(self) -> &'static str {
        self.module()
            .rsplit_once('.')
            .map_or(self.module(), |(_, name)| name)
    }

    /// The projection of a name in `target_modules`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }
}

/// A projection of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index of the layer, from 0.
    pub layer: usize,
    /// The projection.
    pub target: LoraTarget,
}

impl Place {
    /// The module's path, for instance `model.layers.0.self_attn.q_proj`.
    pub(crate) fn module(self) -> String {
        format!("model.layers.{}.{}", self.layer, self.target.module())
    }
}

/// Size, scale and place of adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Inner dimension `r` of every adapter, at least 1.
    pub rank: u32,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(rank)` (arXiv:2312.03732) and not `alpha / rank`.
    pub use_rslora: bool,
    /// The projections that have an adapter, in every layer but for `without`.
    pub targets: BTreeSet<LoraTarget>,
    /// Projections of single layers that have none although they are among `targets`. Empty for adapters that are trained here.
    pub without: BTreeSet<Place>,
}

impl LoraConfig {
    /// The projections that have an adapter in a model of so many layers.
    pub(crate) fn places(&self, num_layers: usize) -> impl Iterator<Item = Place> {
        (0..num_layers)
            .flat_map(|layer| {
                let targets = self.targets.iter();
                targets.map(move |&target| Place { layer, target })
            })
            .filter(|place| !self.without.contains(place))
    }

    /// What `B A` is multiplied with.
    pub fn scale(&self) -> f64 {
        let rank = f64::from(self.rank);
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}
