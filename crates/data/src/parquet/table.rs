//! Columns in, columns out: what the three kinds of rows share.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};

use arrow_array::builder::{BooleanBuilder, Float32Builder, ListBuilder, UInt32Builder};
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Float64Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StringArray,
};
use arrow_schema::{ArrowError, Field, Schema};
use asyncthink_files::{Error as FileError, FileKind};
use fs_err as fs;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::{Error, Result, write_atomic};

/// The metadata key that tells what rows a file holds.
const KIND_KEY: &str = "asyncthink.kind";

/// Rows per batch while reading; bounds what is decoded at once.
const BATCH_ROWS: usize = 4096;

/// Columns of a file that is being written. All have the same length by construction of the callers; Arrow checks it again.
pub(crate) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    pub(crate) fn new() -> Self {
        Self {
            fields: Vec::new(),
            arrays: Vec::new(),
        }
    }

    fn push(mut self, name: &str, nullable: bool, array: ArrayRef) -> Self {
        self.fields
            .push(Field::new(name, array.data_type().clone(), nullable));
        self.arrays.push(array);
        self
    }

    pub(crate) fn strings<'a>(self, name: &str, values: impl Iterator<Item = &'a str>) -> Self {
        self.push(
            name,
            false,
            Arc::new(values.map(Some).collect::<StringArray>()),
        )
    }

    pub(crate) fn optional_strings<'a>(
        self,
        name: &str,
        values: impl Iterator<Item = Option<&'a str>>,
    ) -> Self {
        self.push(name, true, Arc::new(values.collect::<StringArray>()))
    }

    pub(crate) fn u32s(self, name: &str, values: impl Iterator<Item = u32>) -> Self {
        self.push(
            name,
            false,
            Arc::new(PrimitiveArray::<UInt32Type>::from_iter_values(values)),
        )
    }

    pub(crate) fn optional_u32s(
        self,
        name: &str,
        values: impl Iterator<Item = Option<u32>>,
    ) -> Self {
        self.push(
            name,
            true,
            Arc::new(values.collect::<PrimitiveArray<UInt32Type>>()),
        )
    }

    pub(crate) fn u64s(self, name: &str, values: impl Iterator<Item = u64>) -> Self {
        self.push(
            name,
            false,
            Arc::new(PrimitiveArray::<UInt64Type>::from_iter_values(values)),
        )
    }

    pub(crate) fn optional_u64s(
        self,
        name: &str,
        values: impl Iterator<Item = Option<u64>>,
    ) -> Self {
        self.push(
            name,
            true,
            Arc::new(values.collect::<PrimitiveArray<UInt64Type>>()),
        )
    }

    pub(crate) fn f64s(self, name: &str, values: impl Iterator<Item = f64>) -> Self {
        self.push(
            name,
            false,
            Arc::new(PrimitiveArray::<Float64Type>::from_iter_values(values)),
        )
    }

    pub(crate) fn optional_f64s(
        self,
        name: &str,
        values: impl Iterator<Item = Option<f64>>,
    ) -> Self {
        self.push(
            name,
            true,
            Arc::new(values.collect::<PrimitiveArray<Float64Type>>()),
        )
    }

    pub(crate) fn u32_lists(self, name: &str, values: impl Iterator<Item = Vec<u32>>) -> Self {
        let mut builder = ListBuilder::new(UInt32Builder::new());
        for value in values {
            builder.values().append_slice(&value);
            builder.append(true);
        }
        self.push(name, false, Arc::new(builder.finish()))
    }

    pub(crate) fn f32_lists<'a>(self, name: &str, values: impl Iterator<Item = &'a [f32]>) -> Self {
        let mut builder = ListBuilder::new(Float32Builder::new());
        for value in values {
            builder.values().append_slice(value);
            builder.append(true);
        }
        self.push(name, false, Arc::new(builder.finish()))
    }

    pub(crate) fn bool_lists<'a>(
        self,
        name: &str,
        values: impl Iterator<Item = &'a [bool]>,
    ) -> Self {
        let mut builder = ListBuilder::new(BooleanBuilder::new());
        for value in values {
            builder.values().append_slice(value);
            builder.append(true);
        }
        self.push(name, false, Arc::new(builder.finish()))
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn write(self, path: &Path, kind: &'static str) -> Result<()> {
        let wrong = |message: String| Error::WriteParquet {
            path: path.to_path_buf(),
            message,
        };
        let metadata = HashMap::from([(KIND_KEY.to_owned(), kind.to_owned())]);
        let schema = Arc::new(Schema::new(self.fields).with_metadata(metadata));
        let batch = RecordBatch::try_new(schema.clone(), self.arrays)
            .map_err(|error| wrong(error.to_string()))?;
        write_atomic(path, |file| {
            let properties = WriterProperties::builder()
                .set_compression(Compression::SNAPPY)
                .build();
            let write = || -> Result<(), ParquetError> {
                let mut writer = ArrowWriter::try_new(file, schema, Some(properties))?;
                writer.write(&batch)?;
                writer.close()?;
                Ok(())
            };
            write().map_err(|error| wrong(error.to_string()))
        })
    }
}

/// Reads all batches of a file of the given kind and turns each into rows.
pub(crate) fn read<T>(
    path: &Path,
    kind: &'static str,
    rows: impl Fn(&Batch<'_>) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let corrupt = |message: String| Error::CorruptParquet {
        path: path.to_path_buf(),
        message,
    };
    if let Some(kind) = FileKind::of_path(path).filter(|kind| *kind != FileKind::Parquet) {
        let path = path.to_path_buf();
        return Err(FileError::OtherKind { path, kind }.into());
    }
    let (file, _) = fs::File::open(path)?.into_parts();
    quiet_catch(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|error| corrupt(error.to_string()))?;
        let got = builder
            .schema()
            .metadata()
            .get(KIND_KEY)
            .cloned()
            .unwrap_or_else(|| "unknown".to_owned());
        if got != kind {
            return Err(Error::ParquetKind {
                path: path.to_path_buf(),
                expected: kind,
                got,
            });
        }
        let expected_rows = builder.metadata().file_metadata().num_rows();
        let reader = builder
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| corrupt(error.to_string()))?;
        let mut all = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|error: ArrowError| corrupt(error.to_string()))?;
            all.extend(rows(&Batch {
                path,
                columns: &batch,
                first_row: all.len(),
            })?);
        }
        if usize::try_from(expected_rows).ok() != Some(all.len()) {
            return Err(corrupt(format!(
                "the footer promises {expected_rows} rows, found {}",
                all.len()
            )));
        }
        Ok(all)
    })
    .unwrap_or_else(|message| Err(corrupt(message)))
}

/// A batch of rows with typed access to its columns.
pub(crate) struct Batch<'a> {
    path: &'a Path,
    columns: &'a RecordBatch,
    first_row: usize,
}

impl Batch<'_> {
    pub(crate) fn num_rows(&self) -> usize {
        self.columns.num_rows()
    }

    /// An error about one row of this batch.
    pub(crate) fn row_error(&self, row: usize, message: impl Into<String>) -> Error {
        Error::ParquetRow {
            path: self.path.to_path_buf(),
            row: self.first_row + row,
            message: message.into(),
        }
    }

    fn problem(&self, column: &'static str, problem: &'static str) -> Error {
        Error::ParquetColumn {
            path: self.path.to_path_buf(),
            column,
            problem,
        }
    }

    fn column<A: Array + 'static>(&self, name: &'static str) -> Result<&A> {
        let column = self
            .columns
            .column_by_name(name)
            .ok_or_else(|| self.problem(name, "is missing"))?;
        column
            .as_any()
            .downcast_ref()
            .ok_or_else(|| self.problem(name, "has another type"))
    }

    fn required<A: Array + 'static>(&self, name: &'static str) -> Result<&A> {
        let column = self.column::<A>(name)?;
        if column.null_count() > 0 {
            return Err(self.problem(name, "has missing values"));
        }
        Ok(column)
    }

    pub(crate) fn strings(&self, name: &'static str) -> Result<Vec<String>> {
        let column = self.required::<StringArray>(name)?;
        Ok((0..column.len())
            .map(|row| column.value(row).to_owned())
            .collect())
    }

    pub(crate) fn optional_strings(&self, name: &'static str) -> Result<Vec<Option<String>>> {
        Ok(self
            .column::<StringArray>(name)?
            .iter()
            .map(|value| value.map(str::to_owned))
            .collect())
    }

    fn primitives<T: ArrowPrimitiveType>(&self, name: &'static str) -> Result<Vec<T::Native>> {
        Ok(self.required::<PrimitiveArray<T>>(name)?.values().to_vec())
    }

    pub(crate) fn u32s(&self, name: &'static str) -> Result<Vec<u32>> {
        self.primitives::<UInt32Type>(name)
    }

    pub(crate) fn u64s(&self, name: &'static str) -> Result<Vec<u64>> {
        self.primitives::<UInt64Type>(name)
    }

    pub(crate) fn f64s(&self, name: &'static str) -> Result<Vec<f64>> {
        self.primitives::<Float64Type>(name)
    }

    pub(crate) fn optional_u32s(&self, name: &'static str) -> Result<Vec<Option<u32>>> {
        Ok(self
            .column::<PrimitiveArray<UInt32Type>>(name)?
            .iter()
            .collect())
    }

    pub(crate) fn optional_u64s(&self, name: &'static str) -> Result<Vec<Option<u64>>> {
        Ok(self
            .column::<PrimitiveArray<UInt64Type>>(name)?
            .iter()
            .collect())
    }

    pub(crate) fn optional_f64s(&self, name: &'static str) -> Result<Vec<Option<f64>>> {
        Ok(self
            .column::<PrimitiveArray<Float64Type>>(name)?
            .iter()
            .collect())
    }

    fn lists<A: Array + 'static, T>(
        &self,
        name: &'static str,
        values: impl Fn(&A) -> Vec<T>,
    ) -> Result<Vec<Vec<T>>> {
        let column = self.required::<ListArray>(name)?;
        (0..column.len())
            .map(|row| {
                let items = column.value(row);
                let items = items
                    .as_any()
                    .downcast_ref::<A>()
                    .ok_or_else(|| self.problem(name, "has another type"))?;
                if items.null_count() > 0 {
                    return Err(self.problem(name, "has missing values"));
                }
                Ok(values(items))
            })
            .collect()
    }

    pub(crate) fn u32_lists(&self, name: &'static str) -> Result<Vec<Vec<u32>>> {
        self.lists::<PrimitiveArray<UInt32Type>, _>(name, |items| items.values().to_vec())
    }

    pub(crate) fn f32_lists(&self, name: &'static str) -> Result<Vec<Vec<f32>>> {
        self.lists::<PrimitiveArray<Float32Type>, _>(name, |items| items.values().to_vec())
    }

    pub(crate) fn bool_lists(&self, name: &'static str) -> Result<Vec<Vec<bool>>> {
        self.lists::<BooleanArray, _>(name, |items| items.values().iter().collect())
    }
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `action`; a panic in it becomes its message.
///
/// The Parquet library panics on some damaged files. That is the input's fault here, so nothing is printed; panics of other
/// threads are reported as always.
fn quiet_catch<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                previous(info);
            }
        }));
    });
    let was_quiet = IS_QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(action));
    IS_QUIET.set(was_quiet);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("the reader failed")
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_parquet_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pairs.parquet");
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        for (bytes, kind) in [
            (&pointer[..], "is a Git LFS pointer in place of the file"),
            (b"\x1f\x8b\x08\0", "is compressed (gzip)"),
        ] {
            fs::write(&file, bytes).unwrap();
            let error = read(&file, "kind", |_| Ok(vec![()])).unwrap_err();
            assert!(error.to_string().ends_with(kind), "{error}");
            assert!(error.is_input());
        }
        let error = read(dir.path(), "kind", |_| Ok(vec![()])).unwrap_err();
        assert!(
            error.to_string().ends_with("is a folder, not a file"),
            "{error}"
        );
    }

    #[test]
    #[expect(clippy::panic, reason = "the panic is what is tested")]
    fn a_panic_becomes_its_message() {
        assert_eq!(quiet_catch(|| 3), Ok(3));
        let number = 7;
        assert_eq!(
            quiet_catch(|| panic!("bad page {number}")),
            Err::<(), _>("bad page 7".to_owned())
        );
        assert!(!IS_QUIET.get());
    }
}
