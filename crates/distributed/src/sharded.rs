//! A decoder whose parameters the ranks share out (`ZeRO`, stage 3).
//!
//! Every rank holds a part of each unit: of what lies before and after the layers, and of every layer. A unit is gathered when it
//! is computed with and let go afterwards (`asyncthink_gradient::ShardedLayers`), its gradient is summed into the parts.

use std::sync::Arc;

use asyncthink_model::{
    Adapters, Decoder, DecoderEnds, DecoderLayer, LoraConfig, ModelConfig, ModelFolder, Positions,
    draw_parameters, read_adapters, read_parameters,
};
use asyncthink_torch::{Work, set_grad};
use tch::{Device, Kind, Tensor};

use crate::digest::add_sum;
use crate::error::Result;
use crate::flat::{
    FlatLayout, ParameterSlot, ROOT, UnitCuts, first_non_finite, narrow, signed, unit_of_layer,
};
use crate::master::{ReadParameters, fill_own_parts};
use crate::ranks::Ranks;

/// A decoder in parts.
#[derive(Debug)]
pub struct ShardedDecoder {
    config: ModelConfig,
    device: Device,
    positions: Positions,
    layout: FlatLayout,
    cuts: UnitCuts,
    /// `[owned]`, of the type that computes: f32 or bf16.
    own_values: Tensor,
    /// Gradients summed over ranks, f32 `[owned]`; empty for a model that is not trained.
    own_gradients: Tensor,
    ranks: Arc<Ranks>,
    micro_batches_per_gather: usize,
    /// What is trained in place of the weights; every rank has all of them.
    adapters: Option<Adapters>,
    /// What ranks compare, because none of them sees what the others hold.
    digest: String,
}

/// What a decoder in parts is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It gets gradients.
    Training,
    /// It is scored with only.
    Reference,
}

/// How the ranks hold a decoder in parts.
#[derive(Clone, Debug)]
pub struct Sharding {
    /// Ranks that share the weights.
    pub ranks: Arc<Ranks>,
    /// Device of the shards, where units are gathered.
    pub device: Device,
    /// How many micro-batches a gathered layer is used for.
    pub micro_batches_per_gather: usize,
    /// Type of the weights: f32 or bf16.
    pub kind: Kind,
}

impl ShardedDecoder {
    /// Reads this rank's part of a model folder; one parameter is whole at a time.
    ///
    /// # Errors
    /// When the folder cannot be read, or the memory cannot be had.
    pub fn load<'a>(
        folder: impl Into<ModelFolder<'a>>,
        sharding: Sharding,
        purpose: Purpose,
    ) -> Result<Self> {
        let folder = folder.into();
        let config = ModelConfig::from_dir(folder)?;
        let (device, kind) = (sharding.device, sharding.kind);
        Self::fill(config, sharding, purpose, &mut |visit| {
            read_parameters(folder, device, kind, visit)
        })
    }

    /// Reads this rank's part of the base model of a folder, to train adapters on it: those of the folder, or new ones.
    ///
    /// # Errors
    /// When a folder cannot be read, its adapters are not `lora`, or the memory cannot be had.
    pub fn load_with_adapters<'a>(
        folder: impl Into<ModelFolder<'a>>,
        sharding: Sharding,
        lora: LoraConfig,
        seed: u64,
    ) -> Result<Self> {
        let (adapters, base) = read_adapters(folder, sharding.device, lora, seed)?;
        let mut decoder = Self::load(&base, sharding, Purpose::Reference)?;
        for (name, tensor) in adapters.named_parameters() {
            add_sum(&mut decoder.digest, name, tensor)?;
        }
        decoder.adapters = Some(adapters);
        Ok(decoder)
    }

    /// Draws this rank's part of a new model, the same that [`Decoder::init`] draws.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn init(config: &ModelConfig, seed: u64, sharding: Sharding) -> Result<Self> {
        Self::fill(config.clone(), sharding, Purpose::Training, &mut |visit| {
            draw_parameters(config, seed, visit)
        })
    }

    fn fill(
        config: ModelConfig,
        sharding: Sharding,
        purpose: Purpose,
        source: ReadParameters<'_>,
    ) -> Result<Self> {
        let Sharding {
            ranks,
            device,
            micro_batches_per_gather,
            kind,
        } = sharding;
        let layout = FlatLayout::new(&config.parameter_shapes());
        let cuts = UnitCuts::new(&layout, ranks.world_size());
        let zeros = |count, kind| Tensor::f_zeros([signed(count)], (kind, device));
        let own_values = zeros(cuts.owned_elements(), kind)?;
        let own_gradients = match purpose {
            Purpose::Training => zeros(cuts.owned_elements(), Kind::Float)?,
            Purpose::Reference => zeros(0, Kind::Float)?,
        };
        let pieces = cuts.pieces(ranks.rank());
        let mut digest = String::new();
        fill_own_parts(
            &layout,
            &pieces,
            &own_values,
            source,
            &mut |name, tensor| add_sum(&mut digest, name, tensor),
        )?;
        Ok(Self {
            positions: Positions::new(&config, device, kind)?,
            config,
            device,
            layout,
            cuts,
            own_values,
            own_gradients,
            ranks,
            micro_batches_per_gather,
            adapters: None,
            digest,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the parts are, and where units are gathered.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Bytes of weights that this rank holds while it computes nothing.
    pub fn held_bytes(&self) -> usize {
        self.own_values.numel() * self.own_values.kind().elt_size_in_bytes()
    }

    /// Adapters that are trained in place of the weights, if there are some.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// Type of the weights.
    pub fn kind(&self) -> Kind {
        self.own_values.kind()
    }

    /// Rotary positions.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Order of the parameters in the vector.
    pub(crate) fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    /// Shards of every unit.
    pub fn cuts(&self) -> &UnitCuts {
        &self.cuts
    }

    /// Weights of this rank, `[owned]`, of the type that computes.
    pub(crate) fn own_values(&self) -> &Tensor {
        &self.own_values
    }

    /// Gradients of this rank summed over ranks, f32 `[owned]`; empty for a model that is not trained.
    pub fn own_gradients(&self) -> &Tensor {
        &self.own_gradients
    }

    /// Ranks that share the weights.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Micro-batches that a gathered layer is used for.
    pub fn micro_batches_per_gather(&self) -> usize {
        self.micro_batches_per_gather
    }

    /// What must be the same on all ranks when training begins.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Starts to gather a unit.
    ///
    /// # Shapes
    /// `buffer` of the weights' type, at least as long as the unit with its padding.
    ///
    /// # Errors
    /// When the buffer is too short, or a rank is lost.
    pub fn start_gather(&self, unit: usize, buffer: &Tensor) -> Result<Work<'static>> {
        let own = narrow(&self.own_values, &self.cuts.owned(unit))?;
        let whole = narrow(buffer, &(0..self.cuts.padded_elements(unit)))?;
        self.ranks.all_gather_bytes(&own, &whole)
    }

    /// The parameters of a unit as views of the buffer that it was gathered in; with gradients, as leaves that collect them in
    /// an f32 buffer of the same layout.
    fn parameters(
        &self,
        unit: usize,
        values: &Tensor,
        gradients: Option<&Tensor>,
    ) -> Result<Vec<(&ParameterSlot, Tensor)>> {
        let origin = self.layout.units()[unit].elements.start;
        self.layout
            .slots_of(unit)
            .iter()
            .map(|slot| {
                let mut parameter = slot.view(values, origin)?.f_detach()?;
                if let Some(gradients) = gradients {
                    parameter = parameter.f_set_requires_grad(true)?;
                    set_grad(&parameter, &slot.view(gradients, origin)?)?;
                }
                Ok((slot, parameter))
            })
            .collect()
    }

    /// A layer over what was gathered.
    ///
    /// # Errors
    /// When a parameter is not in the unit, or libtorch fails.
    pub fn layer(
        &self,
        index: usize,
        values: &Tensor,
        gradients: Option<&Tensor>,
    ) -> Result<DecoderLayer> {
        let parameters = self.parameters(unit_of_layer(index), values, gradients)?;
        Ok(DecoderLayer::new(
            &self.config,
            index,
            self.adapters.as_ref(),
            &|name| find(&parameters, name),
        )?)
    }

    /// Embedding, norm and head over what was gathered.
    ///
    /// # Errors
    /// When a parameter is not in the unit, or libtorch fails.
    pub fn ends(&self, values: &Tensor, gradients: Option<&Tensor>) -> Result<DecoderEnds> {
        let parameters = self.parameters(ROOT, values, gradients)?;
        Ok(DecoderEnds::new(&self.config, &|name| {
            find(&parameters, name)
        })?)
    }

    /// The whole model, on every rank: to sample from, which needs all layers for every token.
    ///
    /// # Errors
    /// When the memory cannot be had, or a rank is lost.
    pub fn gather(&self) -> Result<Decoder> {
        let mut parameters = Vec::new();
        let mut pending = Vec::new();
        for unit in 0..self.layout.units().len() {
            let size = [signed(self.cuts.padded_elements(unit))];
            let buffer = Tensor::f_empty(size, (self.kind(), self.device))?;
            pending.push(self.start_gather(unit, &buffer)?);
            parameters.extend(named(self.parameters(unit, &buffer, None)?));
        }
        for work in pending {
            self.ranks.finish(work)?;
        }
        let decoder = Decoder::from_parameters(&self.config, parameters)?;
        match &self.adapters {
            // Into what was gathered, which is a copy.
            Some(adapters) => Ok(decoder.merged_with(adapters)?),
            None => Ok(decoder),
        }
    }

    /// The whole model in the first rank's host memory, as it computes: to be written.
    ///
    /// # Errors
    /// When the memory cannot be had, or a rank is lost.
    pub fn own_on_first_rank(&self) -> Result<Option<Decoder>> {
        self.gather_on_first_rank(&self.own_values)
    }

    /// The whole model in the first rank's host memory, unit by unit: to be written. `own` are this rank's values, those
    /// that compute or the master weights.
    ///
    /// # Errors
    /// When the memory cannot be had, or a rank is lost.
    pub(crate) fn gather_on_first_rank(&self, own: &Tensor) -> Result<Option<Decoder>> {
        let mut parameters = Vec::new();
        for unit in 0..self.layout.units().len() {
            let size = [signed(self.cuts.padded_elements(unit))];
            let buffer = Tensor::f_empty(size, (own.kind(), self.device))?;
            let part = narrow(own, &self.cuts.owned(unit))?.f_to_device(self.device)?;
            let work = self.ranks.all_gather_bytes(&part, &buffer)?;
            self.ranks.finish(work)?;
            if self.ranks.is_first() {
                let on_host = buffer.f_to_device(Device::Cpu)?;
                parameters.extend(named(self.parameters(unit, &on_host, None)?));
            }
        }
        if !self.ranks.is_first() {
            return Ok(None);
        }
        let decoder = Decoder::from_parameters(&self.config, parameters)?;
        Ok(Some(match &self.adapters {
            // A copy, which training does not change while it is written.
            Some(adapters) => decoder.with_adapters(adapters)?.host_copy()?,
            None => decoder,
        }))
    }

    /// Name of the first parameter of which this rank holds a value that is not finite. No collective.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        if let Some(adapters) = &self.adapters {
            for (name, tensor) in adapters.named_parameters() {
                if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                    return Ok(Some(name.clone()));
                }
            }
        }
        let pieces = self.cuts.pieces(self.ranks.rank());
        Ok(first_non_finite(&self.own_values, &pieces, &self.layout)?)
    }
}

fn find(parameters: &[(&ParameterSlot, Tensor)], name: &str) -> Option<Tensor> {
    let found = parameters.iter().find(|(slot, _)| slot.name == name);
    found.map(|(_, tensor)| tensor.shallow_clone())
}

fn named(parameters: Vec<(&ParameterSlot, Tensor)>) -> impl Iterator<Item = (String, Tensor)> {
    let own_name = |(slot, tensor): (&ParameterSlot, Tensor)| (slot.name.clone(), tensor);
    parameters
        .into_iter()
        .map(own_name)
        .collect::<Vec<_>>()
        .into_iter()
}
