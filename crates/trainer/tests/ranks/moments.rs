//! What each rank holds of the optimizer.

use std::sync::Arc;
use std::time::Duration;

use asyncthink_distributed::{AdamW, AdamWSettings, Ranks};
use asyncthink_torch::{GroupOptions, ProcessGroup, Store, StoreOptions};
use tch::{Device, Kind, Tensor};

use crate::common::alone;

fn parameters() -> Vec<(String, Tensor)> {
    let values = |count: i64, factor: f64| {
        let range = Tensor::arange(count, (Kind::Float, Device::Cpu));
        (range * factor).sin().set_requires_grad(false)
    };
    let named = |name: &str, value: Tensor| (name.to_owned(), value.copy().set_requires_grad(true));
    vec![
        named(
            "model.embed_tokens.weight",
            values(70, 0.3).reshape([10, 7]),
        ),
        named("a.weight", values(600, 0.7).reshape([20, 30])),
        named("model.norm.weight", values(33, 1.1)),
        named("b.weight", values(55, 0.2).reshape([5, 11])),
    ]
}

/// Three updates with the gradient of a loss whose terms are dealt to the ranks; returns the parameters, the norms, and the
/// bytes of moments.
fn three_updates(ranks: &Arc<Ranks>) -> (Vec<Tensor>, Vec<f64>, usize) {
    const NUM_TERMS: usize = 12;
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let parameters = parameters();
    // Buckets of 400 bytes: parameters are cut anywhere.
    let mut optimizer = AdamW::new(&parameters, settings, Arc::clone(ranks), 400).unwrap();
    let mut norms = Vec::new();
    for _ in 0..3 {
        optimizer.zero_grad();
        for term in ranks.share_of(NUM_TERMS) {
            let factor = 1.0 + term as f64;
            for (_, parameter) in &parameters {
                (parameter * factor).cos().sum(Kind::Float).backward();
            }
        }
        optimizer.reduce_gradients().unwrap();
        norms.push(optimizer.clip_grad_norm(1.0).unwrap());
        optimizer.step(0.01).unwrap();
    }
    let values = parameters.iter().map(|(_, p)| p.detach().copy()).collect();
    (values, norms, optimizer.moment_bytes())
}

#[test]
fn moments_are_shared_out_and_updates_are_the_same() {
    let _alone = alone();
    let (expected, norms, all_bytes) = three_updates(&Arc::new(Ranks::single()));
    for world_size in [2_usize, 3, 4] {
        let store = Store::serve("127.0.0.1", 0, &StoreOptions::default()).unwrap();
        let port = store.port();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..world_size)
                .map(|rank| {
                    scope.spawn(move || {
                        let store =
                            Store::connect("127.0.0.1", port, &StoreOptions::default()).unwrap();
                        let options = GroupOptions {
                            rank,
                            world_size,
                            timeout: Duration::from_mins(1),
                            name: "moments".to_owned(),
                            store_rank: None,
                        };
                        let group = ProcessGroup::new(&store, Device::Cpu, &options).unwrap();
                        let ranks = Arc::new(Ranks::new(group));
                        let result = three_updates(&ranks);
                        ranks.part().unwrap();
                        result
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let first = &results[0].0;
        for (values, rank_norms, bytes) in &results {
            for (index, value) in values.iter().enumerate() {
                assert!(value.equal(&first[index]), "ranks differ");
                assert!(value.allclose(&expected[index], 1e-5, 1e-6, false));
            }
            for (a, b) in norms.iter().zip(rank_norms) {
                assert!((a - b).abs() / a < 1e-5, "{a} {b}");
            }
            // Up to the padding, which is less than 64 bytes a rank and moment.
            let share = all_bytes.div_ceil(world_size);
            assert!(
                *bytes >= share && *bytes < share + 2 * 64 * world_size,
                "{bytes}"
            );
        }
    }
}
