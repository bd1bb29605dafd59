//! temporary
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason
)]
use asyncthink_trainer::*;
use std::path::Path;
struct P(u64, std::time::Instant);
impl Observer for P {
    fn step(&mut self, r: &StepReport<'_>) {
        if r.step % self.0 == 0 || r.step == r.num_steps {
            print!(
                "{:6.0}s {}/{}",
                self.1.elapsed().as_secs_f64(),
                r.step,
                r.num_steps
            );
            for (k, v) in r.figures {
                print!(
                    " {}={:.4}",
                    k.replace("tokens_per_second", "tps")
                        .replace("logprob_mismatch_max_nats", "mm"),
                    v
                );
            }
            println!();
        }
    }
    fn warning(&mut self, m: &str) {
        println!("warning {m}");
    }
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let recipe = asyncthink_recipe::Recipe::load(Path::new(&args[2]), &args[3..])
        .unwrap_or_else(|e| panic!("{e}"));
    let threads = if recipe.num_threads == 0 {
        2
    } else {
        recipe.num_threads
    };
    asyncthink_torch::set_num_threads(threads as usize).unwrap();
    let stop = StopFlag::default();
    let o = RunOptions {
        resume: Resume::Auto,
    };
    for stage in args[1].split(',') {
        let t = std::time::Instant::now();
        match stage {
            "sft" => {
                run_sft(&recipe, &o, &mut P(100, t), &stop).unwrap_or_else(|e| panic!("{e:?}"));
            }
            "grpo" => {
                run_grpo(&recipe, &o, &mut P(1, t), &stop).unwrap_or_else(|e| panic!("{e:?}"));
            }
            _ => panic!(),
        }
        println!("{stage} done in {:.1}s", t.elapsed().as_secs_f64());
    }
}
