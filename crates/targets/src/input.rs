//! Where words come from: arguments, text files, CSV files and standard input.

pub(crate) mod csv_file;
pub(crate) mod source;
pub(crate) mod text_file;
