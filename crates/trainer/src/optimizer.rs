//! AdamW with savable state, and gradient clipping.
//!
//! Decoupled weight decay applies to the matrices of linear layers. Gains of norms and the token embedding (and with it
//! a tied output head) are left out: shrinking a gain or the embedding of a rare token is not regularisation.

use asyncthink_torch::{AdamwSettings, AdamwState, clip_grad_norm_, fused_adamw_};
use tch::Tensor;

use crate::error::{Error, Result};

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

/// Parameters that share a weight decay.
#[derive(Debug, Default)]
struct ParameterGroup {
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first_moments: Vec<Tensor>,
    second_moments: Vec<Tensor>,
    weight_decay: f64,
}

/// AdamW over the parameters of one model.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    groups: [ParameterGroup; 2],
    num_updates: u64,
}

/// Whether weight decay applies to a parameter.
pub fn is_decayed(name: &str, num_dims: usize) -> bool {
    num_dims >= 2 && !name.ends_with("embed_tokens.weight")
}

impl AdamW {
    /// An optimizer with zero moments over `parameters`, which it shares with the model.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(parameters: &[(String, Tensor)], settings: AdamWSettings) -> Result<Self> {
        let mut decayed = ParameterGroup {
            weight_decay: settings.weight_decay,
            ..Default::default()
        };
        let mut kept = ParameterGroup::default();
        for (name, parameter) in parameters {
            let group = if is_decayed(name, parameter.dim()) {
                &mut decayed
            } else {
                &mut kept
            };
            group.names.push(name.clone());
            group.parameters.push(parameter.shallow_clone());
            group.first_moments.push(parameter.detach().f_zeros_like()?);
            group
                .second_moments
                .push(parameter.detach().f_zeros_like()?);
        }
        Ok(Self {
            settings,
            groups: [decayed, kept],
            num_updates: 0,
        })
    }

    /// Updates so far.
    pub fn num_updates(&self) -> u64 {
        self.num_updates
    }

    /// Forgets the gradients.
    pub fn zero_grad(&mut self) {
        for group in &mut self.groups {
            for parameter in &mut group.parameters {
                parameter.zero_grad();
            }
        }
    }

    /// Scales the gradients so that their joint norm is at most `max_norm`; returns the norm before.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<f64> {
        let gradients: Vec<Tensor> = self
            .groups
            .iter()
            .flat_map(|group| &group.parameters)
            .map(Tensor::grad)
            .filter(Tensor::defined)
            .collect();
        Ok(clip_grad_norm_(&gradients, max_norm)?)
    }

    /// One update from the accumulated gradients.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn step(&mut self, learning_rate: f64) -> Result<()> {
        self.num_updates += 1;
        for group in &mut self.groups {
            if group.parameters.is_empty() {
                continue;
            }
            let gradients = group
                .parameters
                .iter()
                .map(gradient_or_zeros)
                .collect::<Result<Vec<_>>>()?;
            fused_adamw_(
                &group.parameters,
                &gradients,
                AdamwState {
                    exp_avgs: &group.first_moments,
                    exp_avg_sqs: &group.second_moments,
                },
                self.num_updates,
                &AdamwSettings {
                    learning_rate,
                    beta1: self.settings.beta1,
                    beta2: self.settings.beta2,
                    weight_decay: group.weight_decay,
                    eps: self.settings.eps,
                },
            )?;
        }
        Ok(())
    }

    /// The moments under the names of their parameters: `exp_avg.NAME` and `exp_avg_sq.NAME`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for group in &self.groups {
            for (index, name) in group.names.iter().enumerate() {
                state.push((
                    format!("exp_avg.{name}"),
                    group.first_moments[index].shallow_clone(),
                ));
                state.push((
                    format!("exp_avg_sq.{name}"),
                    group.second_moments[index].shallow_clone(),
                ));
            }
        }
        state
    }

    /// Takes over saved moments and the count of updates.
    ///
    /// # Errors
    /// When a moment is missing or misshaped; the names are those of [`AdamW::state`].
    pub fn restore(&mut self, state: Vec<(String, Tensor)>, num_updates: u64) -> Result<()> {
        let state: std::collections::BTreeMap<String, Tensor> = state.into_iter().collect();
        let refuse = |name: &str, reason: &str| {
            Error::stage("restoring the optimizer", format!("`{name}` {reason}"))
        };
        for group in &mut self.groups {
            let ParameterGroup {
                names,
                first_moments,
                second_moments,
                ..
            } = group;
            for (index, name) in names.iter().enumerate() {
                for (prefix, moments) in [
                    ("exp_avg", &mut *first_moments),
                    ("exp_avg_sq", &mut *second_moments),
                ] {
                    let key = format!("{prefix}.{name}");
                    let saved = state.get(&key).ok_or_else(|| refuse(&key, "is missing"))?;
                    if saved.size() != moments[index].size() {
                        return Err(refuse(&key, "has another shape"));
                    }
                    moments[index].f_copy_(saved)?;
                }
            }
        }
        self.num_updates = num_updates;
        Ok(())
    }
}

/// A parameter that no loss has reached yet has a gradient of zero, as it has after [`AdamW::zero_grad`]: whether a process
/// is fresh must not show in the numbers.
fn gradient_or_zeros(parameter: &Tensor) -> Result<Tensor> {
    let gradient = parameter.grad();
    if gradient.defined() {
        Ok(gradient)
    } else {
        Ok(parameter.detach().f_zeros_like()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

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
        let mut optimizer = AdamW::new(&parameters, SETTINGS).unwrap();
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
        let optimizer = AdamW::new(&parameters, SETTINGS).unwrap();
        set_gradients(&parameters, 0.5);
        let expected = (1.0_f64 + 4.0 + 9.0 + 0.25 + 1.0 + 4.0).sqrt();
        assert!((optimizer.clip_grad_norm(1.0).unwrap() - expected).abs() < 1e-5);
        assert!((optimizer.clip_grad_norm(1.0).unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn restored_state_continues_bit_for_bit() {
        let straight = parameters();
        let mut optimizer = AdamW::new(&straight, SETTINGS).unwrap();
        let broken = parameters();
        let mut first_half = AdamW::new(&broken, SETTINGS).unwrap();
        for step in 0..4 {
            optimizer.zero_grad();
            set_gradients(&straight, 0.5);
            optimizer.step(0.01).unwrap();
            if step == 2 {
                let mut second_half = AdamW::new(&broken, SETTINGS).unwrap();
                second_half
                    .restore(first_half.state(), first_half.num_updates())
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

    #[test]
    fn embeddings_and_norms_do_not_decay() {
        assert!(is_decayed("model.layers.0.self_attn.q_proj.weight", 2));
        assert!(is_decayed("lm_head.weight", 2));
        assert!(!is_decayed("model.embed_tokens.weight", 2));
        assert!(!is_decayed("model.norm.weight", 1));
    }
}
