//! Parquet, by its library. The columns are those of the view `report`, with types: times are instants in UTC,
//! round-trip times are decimal numbers of milliseconds with six places, which hold nanoseconds exactly.
//!
//! Each row group is sorted by address, and names come last: sorted texts take half of the place. Nobody may rely on the
//! order of rows in a format of columns.
//!
//! Source: <https://parquet.apache.org/docs/file-format/>.

use std::{fs::File, io, net::IpAddr, path::Path, sync::Arc};

use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    column::page::Page,
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
        reader::{FileReader as _, SerializedFileReader},
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::{parser::parse_message_type, types::ColumnPath},
};
use pingfleet_settings::Failure;
use pingfleet_store::{ExportPage, ExportRow, RunSummary};

use super::{Metadata, Output, Pages, WriteError, metadata::FORMAT_VERSION};

/// Rows of a row group.
const GROUP_ROWS: usize = 100_000;

/// The level of zstd: higher ones take much more time and save little.
const ZSTD_LEVEL: i32 = 3;

/// The columns, in the order of the view.
const SCHEMA: &str = "
message report {
    required int64 run;
    required binary run_id (STRING);
    required binary target (STRING);
    optional binary address (STRING);
    required binary status (STRING);
    optional binary reason (STRING);
    required int64 sent;
    required int64 received;
    optional double loss_pct;
    optional int64 rtt_min_ms (DECIMAL(18,6));
    optional int64 rtt_avg_ms (DECIMAL(18,6));
    optional int64 rtt_max_ms (DECIMAL(18,6));
    optional int64 rtt_stddev_ms (DECIMAL(18,6));
    required int64 attempts;
    optional binary worker (STRING);
    optional binary login (STRING);
    optional int64 probed_at (TIMESTAMP(MICROS,true));
    optional binary labels (JSON);
}";

/// Columns whose values mostly differ, with the encoding that takes the least place. The others have a dictionary.
const DIFFERENT: [(&str, Encoding); 7] = [
    ("target", Encoding::DELTA_BYTE_ARRAY),
    ("address", Encoding::DELTA_BYTE_ARRAY),
    ("rtt_min_ms", Encoding::BYTE_STREAM_SPLIT),
    ("rtt_avg_ms", Encoding::BYTE_STREAM_SPLIT),
    ("rtt_max_ms", Encoding::BYTE_STREAM_SPLIT),
    ("rtt_stddev_ms", Encoding::BYTE_STREAM_SPLIT),
    ("probed_at", Encoding::BYTE_STREAM_SPLIT),
];

/// # Errors
/// None: this build has the library.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the same signature as without the library"
)]
pub(super) fn check(_otherwise: &str) -> Result<(), Failure> {
    Ok(())
}

/// Writes the pages as one file, with the metadata of the run in its footer.
pub(super) fn write(
    summary: &RunSummary,
    pages: Pages<'_>,
    metadata: &mut Metadata,
    output: &mut Output,
) -> Result<(), WriteError> {
    let schema = parse_message_type(SCHEMA).map_err(io_error)?;
    let mut writer = SerializedFileWriter::new(output, Arc::new(schema), properties().into())
        .map_err(io_error)?;
    let mut write = |group: &[ExportPage], written| {
        let columns = writer.next_row_group()?;
        Group::new(summary, group, written).write(columns)
    };
    // Pages with `rows` rows that no group has, behind `written` ones of the first page.
    let mut group = Vec::new();
    let (mut rows, mut written) = (0, 0);
    for page in pages {
        let page = page?;
        rows += page.len();
        metadata.rows += page.len() as u64;
        group.push(page);
        while rows >= GROUP_ROWS {
            write(&group, written).map_err(io_error)?;
            rows -= GROUP_ROWS;
            group.drain(..group.len() - 1);
            written = group[0].len() - rows;
        }
    }
    if rows > 0 {
        write(&group, written).map_err(io_error)?;
    }
    let about = serde_json::to_string(&metadata).map_err(io::Error::from)?;
    for (key, value) in [
        ("pingfleet.format_version", FORMAT_VERSION.to_string()),
        ("pingfleet.metadata", about),
    ] {
        writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }
    writer.finish().map_err(io_error)?;
    Ok(())
}

/// Reads a file from the disk, all pages of all columns, and returns how many rows it has.
///
/// # Errors
/// When a page cannot be decompressed, or a column has another number of rows than the footer says.
pub(super) fn read_rows(file: &Path) -> io::Result<u64> {
    let reader = SerializedFileReader::new(File::open(file)?).map_err(io_error)?;
    let footer = reader.metadata();
    let mut rows = 0;
    for at in 0..footer.num_row_groups() {
        let group = reader.get_row_group(at).map_err(io_error)?;
        let expected = footer.row_group(at).num_rows();
        for column in 0..footer.row_group(at).num_columns() {
            let mut found = 0;
            for page in group.get_column_page_reader(column).map_err(io_error)? {
                found += match page.map_err(io_error)? {
                    Page::DictionaryPage { .. } => 0,
                    // No column is repeated, so each row has one value or null.
                    values => i64::from(values.num_values()),
                };
            }
            if found != expected {
                let message = format!("column {column} has {found} values for {expected} rows");
                return Err(io::Error::other(message));
            }
        }
        rows += expected;
    }
    Ok(rows.unsigned_abs())
}

fn properties() -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(GROUP_ROWS);
    for (column, encoding) in DIFFERENT {
        let column = ColumnPath::from(column);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, encoding);
    }
    properties.build()
}

/// The rows of one row group.
struct Group<'p> {
    run: i64,
    run_id: String,
    rows: Vec<ExportRow<'p>>,
}

impl<'p> Group<'p> {
    /// The next [`GROUP_ROWS`] rows of the pages, behind `written` ones.
    fn new(summary: &RunSummary, pages: &'p [ExportPage], written: usize) -> Self {
        let rows = pages.iter().flat_map(ExportPage::rows).skip(written);
        let mut rows: Vec<_> = rows.take(GROUP_ROWS).collect();
        rows.sort_by_cached_key(|row| {
            let address = row.address.filter(|address| *address == row.target);
            let address: Option<IpAddr> = address.and_then(|address| address.parse().ok());
            (
                address.is_none(),
                address,
                address.is_none().then_some(row.target),
            )
        });
        Self {
            run: summary.run,
            run_id: summary.run_id.to_string(),
            rows,
        }
    }

    /// Writes all columns, in the order of [`SCHEMA`].
    fn write(
        &self,
        columns: SerializedRowGroupWriter<'_, &mut Output>,
    ) -> Result<(), ParquetError> {
        let mut columns = Columns {
            writer: columns,
            rows: &self.rows,
        };
        columns.required::<Int64Type>(|_| self.run)?;
        let run_id = ByteArray::from(self.run_id.as_str());
        columns.required::<ByteArrayType>(|_| run_id.clone())?;
        columns.required_texts(|row| row.target)?;
        columns.texts(|row| row.address)?;
        columns.required_texts(|row| row.status.name())?;
        columns.texts(|row| row.reason)?;
        columns.required::<Int64Type>(|row| row.sent)?;
        columns.required::<Int64Type>(|row| row.received)?;
        columns.optional::<DoubleType>(ExportRow::loss_pct)?;
        for at in 0..4 {
            columns.optional::<Int64Type>(|row| row.rtt_ns[at])?;
        }
        columns.required::<Int64Type>(|row| row.attempts)?;
        columns.texts(|row| row.worker)?;
        columns.texts(|row| row.login)?;
        columns.optional::<Int64Type>(|row| row.probed_at_ms.map(|ms| ms * 1000))?;
        columns.texts(|row| row.labels)?;
        columns.writer.close()?;
        Ok(())
    }
}

/// Writes the columns of a row group one after the other.
struct Columns<'a, 'w, 'p> {
    writer: SerializedRowGroupWriter<'a, &'w mut Output>,
    rows: &'p [ExportRow<'p>],
}

impl<'p> Columns<'_, '_, 'p> {
    fn required<T: DataType>(
        &mut self,
        value: impl Fn(&ExportRow<'p>) -> T::T,
    ) -> Result<(), ParquetError> {
        let values: Vec<_> = self.rows.iter().map(value).collect();
        self.write::<T>(&values, None)
    }

    fn optional<T: DataType>(
        &mut self,
        value: impl Fn(&ExportRow<'p>) -> Option<T::T>,
    ) -> Result<(), ParquetError> {
        let all = self.rows.iter().map(value);
        let mut values = Vec::new();
        let present = all.map(|value| {
            let level = i16::from(value.is_some());
            values.extend(value);
            level
        });
        // 1 where there is a value, 0 for a null.
        let levels: Vec<_> = present.collect();
        self.write::<T>(&values, Some(&levels))
    }

    fn required_texts(
        &mut self,
        text: impl Fn(&ExportRow<'p>) -> &'p str,
    ) -> Result<(), ParquetError> {
        let values = texts(self.rows.iter().map(text));
        self.write::<ByteArrayType>(&values, None)
    }

    fn texts(
        &mut self,
        text: impl Fn(&ExportRow<'p>) -> Option<&'p str>,
    ) -> Result<(), ParquetError> {
        let levels: Vec<_> = self
            .rows
            .iter()
            .map(|row| i16::from(text(row).is_some()))
            .collect();
        let values = texts(self.rows.iter().filter_map(text));
        self.write::<ByteArrayType>(&values, Some(&levels))
    }

    fn write<T: DataType>(
        &mut self,
        values: &[T::T],
        levels: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let column = self.writer.next_column()?;
        let mut column = column
            .ok_or_else(|| ParquetError::General("more columns than the schema".to_owned()))?;
        column.typed::<T>().write_batch(values, levels, None)?;
        column.close()
    }
}

/// Texts as parts of one allocation.
fn texts<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<ByteArray> {
    let mut all = Vec::new();
    let lengths = texts.map(|text| {
        all.extend_from_slice(text.as_bytes());
        text.len()
    });
    let lengths: Vec<_> = lengths.collect();
    let all = ByteArray::from(all);
    let mut start = 0;
    let parts = lengths.into_iter().map(|length| {
        start += length;
        all.slice(start - length, length)
    });
    parts.collect()
}

/// The system's error, as far as it is one.
fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        error => io::Error::other(error),
    }
}
