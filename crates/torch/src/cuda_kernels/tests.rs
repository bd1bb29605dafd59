use super::*;

/// Compares the emulated kernels twice: threads of a block then run in opposite orders, as their launches are one apart,
/// which must change nothing.
fn compare(run: fn(Kernels, Kind) -> Result<Vec<KernelCheck>>, kind: Kind) {
    let kernels = Kernels::emulated().unwrap();
    let checks = run(kernels, kind).unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| !check.has_passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    kernels.reverse_threads().unwrap();
    assert_eq!(checks, run(kernels, kind).unwrap());
}

#[test]
fn kernels_of_layers_agree_with_their_references() {
    compare(self_test::layer::run, Kind::Float);
    compare(self_test::layer::run, Kind::BFloat16);
}

#[test]
fn attention_agrees_with_its_reference_in_f32() {
    compare(self_test::attention::run, Kind::Float);
}

#[test]
fn attention_agrees_with_its_reference_in_bf16() {
    compare(self_test::attention::run, Kind::BFloat16);
}

#[test]
fn sampling_agrees_with_its_reference() {
    compare(self_test::sampling::run, Kind::Float);
    compare(self_test::sampling::run, Kind::BFloat16);
}

/// On the CPU: bf16 beside f32, by the kernels of the CPU.
#[test]
fn a_layer_of_training_agrees_with_its_reference() {
    let checks = self_test::training::run(Device::Cpu).unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| !check.has_passed()).collect();
    assert!(checks.len() == 2 && failed.is_empty(), "{failed:#?}");
    assert!(checks.iter().all(|check| check.difference > 1e-4));
}

/// The library for GPUs opens where there is none: it needs the CUDA run time, which comes with libtorch, and no driver.
#[test]
fn library_of_kernels_opens_without_a_gpu() {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let allocator = crate::device::libtorch_folder()
        .unwrap()
        .join("libc10_cuda.so");
    // SAFETY: a library of the libtorch that is loaded.
    let Ok(loaded) = (unsafe { Library::open(Some(allocator), RTLD_NOW | RTLD_GLOBAL) }) else {
        return;
    };
    std::mem::forget(loaded);
    match Functions::open_cuda() {
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("without nvcc"), "{error}"),
    }
    let error = self_test(Device::Cpu).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`open_kernels`: `device` must be a GPU, not Cpu"
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let kernels = Kernels::emulated().unwrap();
    let options = (Kind::Float, Device::Cpu);
    let x = Tensor::zeros([2, 8], options);
    let weight = Tensor::zeros([8], options);
    let fails = |residual: &Tensor, weight: &Tensor| {
        let result = kernels.add_rms_norm_(Some(&x), residual, weight, 1e-6);
        result.unwrap_err().to_string()
    };
    let short = fails(&x, &Tensor::zeros([4], options));
    assert!(
        short.contains("`weight` must be Float [8] on Cpu"),
        "{short}"
    );
    let kind = fails(&x.to_kind(Kind::Double), &weight);
    assert!(kind.contains("Float or BFloat16"), "{kind}");
    let strided = fails(&Tensor::zeros([8, 2], options).transpose(0, 1), &weight);
    assert!(strided.contains("not contiguous"), "{strided}");
    let begins = Tensor::zeros([17], options).narrow(0, 1, 16).view([2, 8]);
    let unaligned = fails(&begins, &weight);
    assert!(unaligned.contains("not aligned"), "{unaligned}");
}

#[test]
fn attention_that_does_not_fit_is_refused() {
    let kernels = Kernels::emulated().unwrap();
    let float = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let int = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int, Device::Cpu));
    let fails = |cache: &Tensor, path, splits| {
        let q = float(&[2, 4, 16]);
        let inputs = PagedAttention {
            q: &q,
            k_cache: cache,
            v_cache: cache,
            block_tables: &int(&[1, 2]),
            row_sequences: &int(&[2]),
            context_lens: &int(&[2]),
        };
        let partial = PartialSums::new(&kernels, 1, 4, 16, splits).unwrap();
        let out = float(&[2, 4, 16]);
        let result = kernels.paged_attention_(&inputs, AttentionRows::All, path, &partial, &out);
        result.unwrap_err().to_string()
    };
    let cache = float(&[3, 16, 2, 16]);
    for (error, expected) in [
        (
            fails(&float(&[3, 8, 2, 16]), AttentionPath::ByRow, 1),
            "a multiple of 16",
        ),
        (
            fails(&float(&[3, 16, 3, 16]), AttentionPath::ByRow, 1),
            "a multiple of 3 heads",
        ),
        (
            fails(&cache, AttentionPath::SharedKeys, 1),
            "by row for these heads",
        ),
        (fails(&cache, AttentionPath::ByRow, 4), "room for 2 rows"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
