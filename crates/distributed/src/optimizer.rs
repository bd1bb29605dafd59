//! AdamW with gradient clipping, its moments shared out among the ranks.
//!
//! Decoupled weight decay applies to the matrices of linear layers. Gains of norms and the token embedding (and with it
//! a tied output head) are left out: shrinking a gain or the embedding of a rare token is not regularisation.
//!
//! A rank holds the moments of its own part only. Where every rank holds all parameters (`ZeRO`, stage 1), gradients are summed
//! into the part of the rank that owns it, that rank updates it, and the updated parts are gathered again. Where parameters are
//! shared out themselves (stage 3), each rank updates what it holds. Alone, a rank owns everything and nothing is exchanged.
//!
//! Of parameters in bf16 a rank also holds f32 master weights of its own part. They are what is updated; the parameters are
//! their rounded values. With the state in host memory, gradients are copied there part by part and updated weights back.

use std::rc::Rc;
use std::sync::Arc;

use asyncthink_model::{Decoder, ModelConfig};
use asyncthink_torch::{AdamwSettings, AdamwState, fused_adamw_, global_norm, scale_};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::flat::{FlatLayout, Piece, Segment, first_non_finite, narrow, segments, signed};
use crate::master::{self, Master, StateOptions};
use crate::ranks::Ranks;
use crate::replicated::{BucketExchange, Replicated};
use crate::sharded::ShardedDecoder;

/// Names of the moments.
pub(crate) const FIRST: &str = "exp_avg";
pub(crate) const SECOND: &str = "exp_avg_sq";

/// Elements that are turned into f64 at a time, for the sum of their squares.
const NORM_ELEMENTS: usize = 1 << 18;

/// Constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
}

/// AdamW over the parameters of one model.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    ranks: Arc<Ranks>,
    parameters: Parameters,
    owned: Owned,
    num_updates: u64,
}

/// Where the parameters are.
#[derive(Debug)]
enum Parameters {
    /// Whole on every rank.
    Replicated(Replicated),
    /// In parts.
    Sharded(Rc<ShardedDecoder>),
}

impl Parameters {
    fn layout(&self) -> &FlatLayout {
        match self {
            Self::Replicated(whole) => &whole.layout,
            Self::Sharded(sharded) => sharded.layout(),
        }
    }

    fn pieces(&self, rank: usize) -> Vec<Piece> {
        match self {
            Self::Replicated(whole) => whole.cuts.pieces(rank),
            Self::Sharded(sharded) => sharded.cuts().pieces(rank),
        }
    }

    fn owned_elements(&self) -> usize {
        match self {
            Self::Replicated(whole) => whole.cuts.owned_elements(),
            Self::Sharded(sharded) => sharded.cuts().owned_elements(),
        }
    }

    fn device(&self) -> Device {
        match self {
            Self::Replicated(whole) => whole.values.device(),
            Self::Sharded(sharded) => sharded.own_values().device(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Replicated(whole) => whole.values.kind(),
            Self::Sharded(sharded) => sharded.kind(),
        }
    }

    fn values(&self, segment: &Segment) -> Result<Tensor> {
        match self {
            Self::Replicated(whole) => Ok(narrow(&whole.values, &segment.elements)?),
            Self::Sharded(sharded) => part(sharded.own_values(), segment),
        }
    }
}

/// What a rank holds of the optimizer: vectors of the elements that it owns, in order.
#[derive(Debug)]
pub(crate) struct Owned {
    pub segments: Vec<Segment>,
    /// f32 weights, where the parameters are of another type or the state is in host memory.
    master: Option<Master>,
    /// First moments, f32 `[owned]`.
    pub first_moments: Tensor,
    /// Second moments, f32 `[owned]`.
    pub second_moments: Tensor,
    /// Gradients summed over ranks, f32 `[owned]`; those of the parameters themselves where these are.
    gradients: Tensor,
}

/// The elements of a segment in a vector of what the rank owns.
fn part(vector: &Tensor, segment: &Segment) -> Result<Tensor> {
    let start = segment.owned_start;
    Ok(narrow(vector, &(start..start + segment.elements.len()))?)
}

/// A vector in pieces whose copies in f64 are small.
fn chunks(vector: &Tensor) -> Result<Vec<Tensor>> {
    let num_elements = vector.numel();
    (0..num_elements)
        .step_by(NORM_ELEMENTS)
        .map(|start| {
            Ok(narrow(
                vector,
                &(start..num_elements.min(start + NORM_ELEMENTS)),
            )?)
        })
        .collect()
}

impl AdamW {
    /// An optimizer with zero moments over `parameters`, which it lays out as one vector and shares with the model.
    ///
    /// All ranks must bring the same parameters. `bucket_bytes` is how much is exchanged at a time.
    ///
    /// # Errors
    /// When a parameter is not f32, or the memory cannot be had.
    pub fn new(
        parameters: &[(String, Tensor)],
        settings: AdamWSettings,
        ranks: Arc<Ranks>,
        bucket_bytes: usize,
    ) -> Result<Self> {
        let state = StateOptions::default();
        Self::with_state(parameters, settings, ranks, bucket_bytes, state)
    }

    /// As [`AdamW::new`], with state that is kept elsewhere or begins from f32 weights that are read: of parameters in bf16
    /// the optimizer updates f32 master weights, and rounds them into the parameters after each update.
    ///
    /// # Errors
    /// When parameters are neither all f32 nor all bf16, `state` cannot be read, or the memory cannot be had.
    pub fn with_state(
        parameters: &[(String, Tensor)],
        settings: AdamWSettings,
        ranks: Arc<Ranks>,
        bucket_bytes: usize,
        state: StateOptions<'_>,
    ) -> Result<Self> {
        let bucket_elements = bucket_bytes / size_of::<f32>();
        let whole = Replicated::take_over(parameters, bucket_elements, Arc::clone(&ranks))?;
        let shared = ranks.is_alone().then(|| whole.gradients.shallow_clone());
        let parameters = Parameters::Replicated(whole);
        Self::over(parameters, shared, settings, ranks, state)
    }

    /// An optimizer with zero moments over parameters that the ranks share out.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn of_sharded(
        decoder: &Rc<ShardedDecoder>,
        settings: AdamWSettings,
        ranks: Arc<Ranks>,
        state: StateOptions<'_>,
    ) -> Result<Self> {
        let gradients = decoder.own_gradients().shallow_clone();
        let parameters = Parameters::Sharded(Rc::clone(decoder));
        Self::over(parameters, Some(gradients), settings, ranks, state)
    }

    fn over(
        parameters: Parameters,
        gradients: Option<Tensor>,
        settings: AdamWSettings,
        ranks: Arc<Ranks>,
        state: StateOptions<'_>,
    ) -> Result<Self> {
        let StateOptions { on_host, read } = state;
        let num_owned = signed(parameters.owned_elements());
        let device = parameters.device();
        let pieces = parameters.pieces(ranks.rank());
        let segments = segments(parameters.layout(), &pieces);
        let master = if on_host || parameters.kind() != Kind::Float {
            let master = Master::new(num_owned, parameters.kind(), device, on_host)?;
            match read {
                Some(read) => master.fill(parameters.layout(), &pieces, read)?,
                None => {
                    for segment in &segments {
                        let values = parameters.values(segment)?;
                        part(&master.values, segment)?.f_copy_(&values)?;
                    }
                }
            }
            Some(master)
        } else {
            None
        };
        let owned = Owned {
            segments,
            master,
            first_moments: master::zeros(num_owned, device, on_host)?,
            second_moments: master::zeros(num_owned, device, on_host)?,
            gradients: match gradients {
                Some(gradients) => gradients,
                None => master::zeros(num_owned, device, false)?,
            },
        };
        Ok(Self {
            settings,
            ranks,
            parameters,
            owned,
            num_updates: 0,
        })
    }

    /// Updates so far.
    pub fn num_updates(&self) -> u64 {
        self.num_updates
    }

    /// Bytes of moments that this rank holds.
    pub fn moment_bytes(&self) -> usize {
        2 * self.owned.first_moments.numel() * size_of::<f32>()
    }

    /// Ranks that share the optimizer state.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Order of the parameters in the vector.
    pub fn layout(&self) -> &FlatLayout {
        self.parameters.layout()
    }

    /// Optimizer state of this rank.
    pub(crate) fn owned(&self) -> &Owned {
        &self.owned
    }

    /// The elements of the vector whose moments a rank holds.
    pub fn pieces(&self, rank: usize) -> Vec<Piece> {
        self.parameters.pieces(rank)
    }

    /// Name of the first master weight or moment of which this rank holds a value that is not finite, such as `exp_avg of lm_head.weight`. No
    /// collective.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        let pieces = self.pieces(self.ranks.rank());
        if let Some(master) = &self.owned.master
            && let Some(parameter) = first_non_finite(&master.values, &pieces, self.layout())?
        {
            return Ok(Some(parameter));
        }
        let moments = [
            (FIRST, &self.owned.first_moments),
            (SECOND, &self.owned.second_moments),
        ];
        for (moment, values) in moments {
            if let Some(parameter) = first_non_finite(values, &pieces, self.layout())? {
                return Ok(Some(format!("{moment} of {parameter}")));
            }
        }
        Ok(None)
    }

    /// Takes over the count of updates of a checkpoint.
    pub(crate) fn set_num_updates(&mut self, num_updates: u64) {
        self.num_updates = num_updates;
    }

    /// Sets the gradients to zero, in slot.
    pub fn zero_grad(&mut self) {
        if let Parameters::Replicated(whole) = &mut self.parameters {
            let _ = whole.gradients.zero_();
        }
        let _ = self.owned.gradients.zero_();
    }

    /// The exchange of one update's gradients, where every rank has all of them.
    pub fn exchange(&self) -> Option<BucketExchange<'_>> {
        match &self.parameters {
            Parameters::Replicated(whole) => Some(whole.exchange(&self.owned.gradients)),
            Parameters::Sharded(_) => None,
        }
    }

    /// Gradients summed over ranks of what this rank owns, f32 `[owned]`.
    pub fn gradients(&self) -> &Tensor {
        &self.owned.gradients
    }

    /// The model in f32 in the first rank's host memory, where the optimizer has the f32 weights; all ranks ask together.
    /// `None` on the other ranks, and where the parameters are the f32 weights themselves. Without `is_copy` the optimizer may
    /// go on to update what is returned.
    ///
    /// # Errors
    /// When the memory cannot be had, or a rank is lost.
    pub fn master_on_first_rank(
        &self,
        config: &ModelConfig,
        is_copy: bool,
    ) -> Result<Option<Decoder>> {
        let Some(master) = &self.owned.master else {
            return Ok(None);
        };
        match &self.parameters {
            Parameters::Replicated(whole) => {
                let Some(parameters) = whole.gather_on_first_rank(&master.values, is_copy)? else {
                    return Ok(None);
                };
                Ok(Some(Decoder::from_parameters(config, parameters)?))
            }
            Parameters::Sharded(sharded) => sharded.gather_on_first_rank(&master.values),
        }
    }

    /// Whether checkpoints hold master weights of the optimizer in place of the parameters.
    pub fn has_master(&self) -> bool {
        self.parameters.kind() != Kind::Float
    }

    /// Whether master weights and moments are in host memory.
    pub fn is_on_host(&self) -> bool {
        self.owned.master.as_ref().is_some_and(Master::is_on_host)
    }

    /// Sums the gradients over all ranks; every rank then has the sum of what it owns. To be left out where the exchange of
    /// [`AdamW::exchange`] was finished.
    ///
    /// # Errors
    /// When a rank is lost or too slow.
    pub fn reduce_gradients(&self) -> Result<()> {
        match self.exchange() {
            Some(exchange) => exchange.finish(),
            None => Ok(()),
        }
    }

    /// Scales the gradients so that their joint norm is at most `max_norm`; returns the norm before.
    ///
    /// A norm that is not finite leaves the gradients as they are: the caller sees it in the value returned.
    ///
    /// # Errors
    /// When libtorch refuses an operation, or a rank is lost.
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<f64> {
        let own = global_norm(&chunks(&self.owned.gradients)?)?;
        let norm = if self.ranks.world_size() == 1 {
            own
        } else {
            let mut squares = [own * own];
            self.ranks.sum(&mut squares)?;
            squares[0].sqrt()
        };
        if norm.is_finite() && norm > max_norm {
            scale_(&[&self.owned.gradients], max_norm / norm)?;
        }
        Ok(norm)
    }

    /// One update from the accumulated gradients; afterwards all ranks have the same parameters.
    ///
    /// # Errors
    /// When libtorch refuses an operation, or a rank is lost.
    pub fn step(&mut self, learning_rate: f64) -> Result<()> {
        self.num_updates += 1;
        let _no_grad = tch::no_grad_guard();
        for decays in [true, false] {
            let of_group = |segment: &&Segment| segment.decays == decays;
            let segments: Vec<&Segment> = self.owned.segments.iter().filter(of_group).collect();
            match &self.owned.master {
                Some(master) if master.is_on_host() => {
                    for segment in segments {
                        for portion in master.portions(segment.elements.len()) {
                            let start = segment.owned_start + portion.start;
                            let owned = start..start + portion.len();
                            let gradients = narrow(&self.owned.gradients, &owned)?;
                            let portion = master.fetch(&owned, &gradients)?;
                            let update = Update {
                                parameters: vec![portion.master],
                                gradients: vec![portion.gradients],
                                first_moments: vec![narrow(&self.owned.first_moments, &owned)?],
                                second_moments: vec![narrow(&self.owned.second_moments, &owned)?],
                            };
                            self.apply(&update, decays, learning_rate)?;
                        }
                    }
                }
                master => {
                    let mut update = Update::default();
                    for segment in segments {
                        update.parameters.push(match master {
                            Some(master) => part(&master.values, segment)?,
                            None => self.parameters.values(segment)?,
                        });
                        update.gradients.push(part(&self.owned.gradients, segment)?);
                        let (first, second) =
                            (&self.owned.first_moments, &self.owned.second_moments);
                        update.first_moments.push(part(first, segment)?);
                        update.second_moments.push(part(second, segment)?);
                    }
                    self.apply(&update, decays, learning_rate)?;
                }
            }
        }
        if let Some(master) = &self.owned.master {
            for segment in &self.owned.segments {
                let start = segment.owned_start;
                let owned = start..start + segment.elements.len();
                master.write(&owned, &mut self.parameters.values(segment)?)?;
            }
        }
        match &self.parameters {
            Parameters::Replicated(whole) => whole.gather_values(),
            Parameters::Sharded(_) => Ok(()),
        }
    }

    /// Updates some of what this rank owns.
    fn apply(&self, update: &Update, decays: bool, learning_rate: f64) -> Result<()> {
        if update.parameters.is_empty() {
            return Ok(());
        }
        Ok(fused_adamw_(
            &update.parameters,
            &update.gradients,
            AdamwState {
                exp_avgs: &update.first_moments,
                exp_avg_sqs: &update.second_moments,
            },
            self.num_updates,
            &AdamwSettings {
                learning_rate,
                beta1: self.settings.beta1,
                beta2: self.settings.beta2,
                weight_decay: if decays {
                    self.settings.weight_decay
                } else {
                    0.0
                },
                eps: self.settings.eps,
            },
        )?)
    }
}

/// Parts of what a rank owns that are updated together, equally many of each.
#[derive(Default)]
struct Update {
    parameters: Vec<Tensor>,
    gradients: Vec<Tensor>,
    first_moments: Vec<Tensor>,
    second_moments: Vec<Tensor>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    use crate::optimizer_files;

    const SETTINGS: AdamWSettings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };

    fn parameters() -> Vec<(String, Tensor)> {
        let matrix = Tensor::from_slice(&[1.0_f32, -2.0, 3.0, 0.5]).reshape([2, 2]);
        let gain = Tensor::from_slice(&[1.0_f32, 2.0]);
        vec![
            (
                "model.layers.0.mlp.up_proj.weight".into(),
                matrix.set_requires_grad(true),
            ),
            ("model.norm.weight".into(), gain.set_requires_grad(true)),
        ]
    }

    fn optimizer_of(parameters: &[(String, Tensor)]) -> AdamW {
        AdamW::new(parameters, SETTINGS, Arc::new(Ranks::single()), 64).unwrap()
    }

    fn set_gradients(parameters: &[(String, Tensor)], scale: f64) {
        let mut loss = Tensor::zeros([], (Kind::Float, Device::Cpu));
        for (_, parameter) in parameters {
            loss += (parameter * parameter).sum(Kind::Float) * scale;
        }
        loss.backward();
    }

    /// Plain AdamW in f64, for one parameter value.
    fn reference(mut value: f64, gradients: &[f64], learning_rate: f64, decay: f64) -> f64 {
        let (mut first, mut second) = (0.0, 0.0);
        for (index, gradient) in gradients.iter().enumerate() {
            let step = i32::try_from(index + 1).unwrap();
            value -= learning_rate * decay * value;
            first = SETTINGS.beta1 * first + (1.0 - SETTINGS.beta1) * gradient;
            second = SETTINGS.beta2 * second + (1.0 - SETTINGS.beta2) * gradient * gradient;
            let first_hat = first / (1.0 - SETTINGS.beta1.powi(step));
            let second_hat = second / (1.0 - SETTINGS.beta2.powi(step));
            value -= learning_rate * first_hat / (second_hat.sqrt() + SETTINGS.eps);
        }
        value
    }

    #[test]
    fn two_updates_equal_the_formula_and_only_matrices_decay() {
        let parameters = parameters();
        let mut optimizer = optimizer_of(&parameters);
        let mut seen: Vec<Vec<f64>> = vec![Vec::new(); 2];
        for _ in 0..2 {
            optimizer.zero_grad();
            set_gradients(&parameters, 0.5);
            for (index, (_, parameter)) in parameters.iter().enumerate() {
                seen[index].push(parameter.grad().flatten(0, -1).double_value(&[0]));
            }
            optimizer.step(0.01).unwrap();
        }
        let matrix = parameters[0].1.flatten(0, -1).double_value(&[0]);
        let gain = parameters[1].1.double_value(&[0]);
        assert!((matrix - reference(1.0, &seen[0], 0.01, 0.1)).abs() < 1e-6);
        assert!((gain - reference(1.0, &seen[1], 0.01, 0.0)).abs() < 1e-6);
    }

    #[test]
    fn clipping_caps_the_joint_norm() {
        let parameters = parameters();
        let optimizer = optimizer_of(&parameters);
        set_gradients(&parameters, 0.5);
        let expected = (1.0_f64 + 4.0 + 9.0 + 0.25 + 1.0 + 4.0).sqrt();
        assert!((optimizer.clip_grad_norm(1.0).unwrap() - expected).abs() < 1e-5);
        assert!((optimizer.clip_grad_norm(1.0).unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn restored_state_continues_bit_for_bit() {
        let straight = parameters();
        let mut optimizer = optimizer_of(&straight);
        let broken = parameters();
        let mut first_half = optimizer_of(&broken);
        for step in 0..4 {
            optimizer.zero_grad();
            set_gradients(&straight, 0.5);
            optimizer.step(0.01).unwrap();
            if step == 2 {
                let mut second_half = optimizer_of(&broken);
                let dir = tempfile::tempdir().unwrap();
                let ranks = Ranks::single();
                let share = optimizer_files::snapshot(&first_half, &ranks).unwrap();
                share.write(dir.path()).unwrap();
                let num_updates = first_half.num_updates();
                optimizer_files::restore(&mut second_half, &ranks, dir.path(), num_updates)
                    .unwrap();
                first_half = second_half;
            }
            first_half.zero_grad();
            set_gradients(&broken, 0.5);
            first_half.step(0.01).unwrap();
        }
        for ((_, a), (_, b)) in straight.iter().zip(&broken) {
            assert!(a.equal(b));
        }
    }

    /// The parameters rounded to bf16, with an optimizer that has their f32 values.
    fn in_bf16(on_host: bool) -> (Vec<(String, Tensor)>, AdamW) {
        let exact = parameters();
        let rounded: Vec<(String, Tensor)> = exact
            .iter()
            .map(|(name, tensor)| {
                let rounded = tensor.detach().to_kind(Kind::BFloat16);
                (name.clone(), rounded.set_requires_grad(true))
            })
            .collect();
        let mut read = |visit: asyncthink_model::VisitParameter<'_>| {
            exact
                .iter()
                .try_for_each(|(name, tensor)| visit(name, tensor.detach()))
        };
        let state = StateOptions {
            on_host,
            read: Some(&mut read),
        };
        let ranks = Arc::new(Ranks::single());
        let optimizer = AdamW::with_state(&rounded, SETTINGS, ranks, 64, state).unwrap();
        (rounded, optimizer)
    }

    #[test]
    fn master_weights_move_where_bf16_cannot_and_are_rounded_into_the_parameters() {
        let (parameters, mut optimizer) = in_bf16(false);
        let before: Vec<Tensor> = parameters.iter().map(|(_, one)| one.copy()).collect();
        for step in 1..=40 {
            optimizer.zero_grad();
            set_gradients(&parameters, 0.5);
            optimizer.step(1e-4).unwrap();
            if step == 1 {
                // Half a unit in the last place of 1 is 2e-3 below it: twenty updates.
                let unmoved = parameters.iter().zip(&before);
                assert!(unmoved.into_iter().all(|((_, a), b)| a.equal(b)));
            }
        }
        let master = &optimizer.owned.master.as_ref().unwrap().values;
        for index in [0, 1] {
            let slot = &optimizer.layout().slots()[index];
            let first = slot.view(master, 0).unwrap().flatten(0, -1);
            let moved = 1.0 - first.double_value(&[0]);
            assert!((moved - 40.0 * 1e-4).abs() < 1e-3, "{moved}");
            let rounded = slot.view(master, 0).unwrap().to_kind(Kind::BFloat16);
            let name = &slot.name;
            let (_, parameter) = parameters.iter().find(|(other, _)| other == name).unwrap();
            assert!(parameter.equal(&rounded));
            assert!(!parameter.equal(&before[index]));
        }
    }

    #[test]
    fn state_in_host_memory_gives_the_same_bits() {
        let (here, mut on_device) = in_bf16(false);
        let (there, mut on_host) = in_bf16(true);
        assert!(on_host.is_on_host() && !on_device.is_on_host());
        for _ in 0..3 {
            for (parameters, optimizer) in [(&here, &mut on_device), (&there, &mut on_host)] {
                optimizer.zero_grad();
                set_gradients(parameters, 0.5);
                optimizer.clip_grad_norm(0.7).unwrap();
                optimizer.step(0.01).unwrap();
            }
        }
        let all = here.iter().zip(&there);
        assert!(all.into_iter().all(|((_, a), (_, b))| a.equal(b)));
        let of = |optimizer: &AdamW| {
            let owned = &optimizer.owned;
            let master = &owned.master.as_ref().unwrap().values;
            [master, &owned.first_moments, &owned.second_moments].map(Tensor::copy)
        };
        assert_eq!(of(&on_device), of(&on_host));

        // f32 parameters too, which then have master weights of their own.
        let [plain, offloaded] = [parameters(), parameters()];
        let mut on_device = optimizer_of(&plain);
        let state = StateOptions {
            on_host: true,
            read: None,
        };
        let ranks = Arc::new(Ranks::single());
        let mut on_host = AdamW::with_state(&offloaded, SETTINGS, ranks, 64, state).unwrap();
        for (parameters, optimizer) in [(&plain, &mut on_device), (&offloaded, &mut on_host)] {
            set_gradients(parameters, 0.5);
            optimizer.step(0.01).unwrap();
        }
        let all = plain.iter().zip(&offloaded);
        assert!(all.into_iter().all(|((_, a), (_, b))| a.equal(b)));
    }
}
