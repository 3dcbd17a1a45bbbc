//! A condition of the user in SQL. SQLite itself reads it, and its authorizer decides what it may name: columns of one
//! view and functions without side effects. It has no SELECT of its own, so its cost is bounded for each row.
//!
//! Source: <https://www.sqlite.org/c3ref/set_authorizer.html>, <https://www.sqlite.org/security.html>.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{
    Connection, Error, ErrorCode,
    config::DbConfig,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
};

use super::hosts::LATEST_COLUMNS;
use crate::{Reader, StoreError};

/// The longest value that a condition may compute, in bytes. A work message, with its labels, has at most 256 KiB.
const MAX_VALUE: i32 = 1_000_000;

/// The longest pattern of LIKE and GLOB, in bytes: its cost may grow with its square.
const MAX_PATTERN: i32 = 200;

/// The functions that a condition may call: they have no side effects and read no file.
const FUNCTIONS: &str = "-> ->> abs ceil ceiling char coalesce concat concat_ws current_date current_time \
    current_timestamp date datetime exp floor format glob hex if ifnull iif instr json_array_length json_extract json_type \
    json_valid julianday length like likelihood likely ln log log10 log2 lower ltrim max min mod nullif octet_length pow \
    power printf quote random replace round rtrim sign sqrt strftime substr substring time timediff trim trunc typeof \
    unhex unicode unixepoch unlikely upper";

/// A condition on the columns of a view, in SQL, which was checked: it reads nothing else, and is one expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition(String);

impl Condition {
    /// The condition in parentheses. The line break ends a comment.
    pub(crate) fn as_operand(&self) -> String {
        format!("({}\n)", self.0)
    }
}

impl Reader {
    /// Checks a condition on the columns of the view `report`. It may name these columns and call functions without side
    /// effects, and has no SELECT.
    ///
    /// # Errors
    /// [`StoreError::BadCondition`] with what SQLite said.
    pub fn report_condition(&self, condition: &str) -> Result<Condition, StoreError> {
        self.read(|connection| check(connection, "report", condition))
    }

    /// The same for the view `latest`.
    ///
    /// # Errors
    /// As [`Self::report_condition`].
    pub fn latest_condition(&self, condition: &str) -> Result<Condition, StoreError> {
        self.read(|connection| {
            // The changes are a SELECT in the view. Here a condition must have none, so a view takes its place that has the
            // same columns.
            let further = LATEST_COLUMNS.map(|column| format!("NULL AS {column}"));
            connection.execute_batch(&format!(
                "CREATE TEMP VIEW latest AS SELECT *, {} FROM report",
                further.join(", ")
            ))?;
            check(connection, "latest", condition)
        })
    }
}

fn check(
    connection: &mut Connection,
    view: &'static str,
    condition: &str,
) -> Result<Condition, StoreError> {
    limit(connection)?;
    let all = connection.prepare(&format!("SELECT * FROM {view}"))?;
    let columns = all.column_names().collect::<Vec<_>>().join(", ");
    drop(all);
    let condition = Condition(condition.to_owned());
    // What both statements accept is one expression. The second one has no parenthesis that the condition could close;
    // the first one has no CASE that it could end.
    let statements = [
        format!("SELECT 1 FROM {view} WHERE {}", condition.as_operand()),
        format!("SELECT CASE WHEN {}\n THEN 1 END FROM {view}", condition.0),
    ];
    for sql in &statements {
        let refused = authorize(connection, view)?;
        match connection.prepare(sql) {
            Ok(statement) if statement.parameter_count() > 0 => {
                return Err(bad("it has a parameter: write the value itself".to_owned()));
            }
            Ok(statement) if !statement.readonly() => {
                return Err(bad("it would change the database".to_owned()));
            }
            Ok(_) => {}
            Err(error) if is_at_fault(&error) => {
                let refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
                let said = message(&error);
                return Err(bad(match &*refused {
                    Some(refused) => refused.clone(),
                    None if said.starts_with("no such column") => {
                        format!("{said}; the columns are {columns}")
                    }
                    None => said,
                }));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(condition)
}

/// Lets the next statement of a connection read a view, and nothing else. Returns where the first refusal is noted.
fn authorize(
    connection: &mut Connection,
    view: &'static str,
) -> Result<Arc<Mutex<Option<String>>>, StoreError> {
    let refused = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&refused);
    let mut selects = 0;
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        // The condition has no view of its own.
        let is_inside_view = context.accessor.is_some();
        let refusal = match context.action {
            AuthAction::Select if is_inside_view => None,
            AuthAction::Select => {
                selects += 1;
                (selects > 1).then(|| "it has a SELECT of its own".to_owned())
            }
            // A table of the view of which no column is read.
            AuthAction::Read {
                column_name: "", ..
            } => None,
            AuthAction::Read { table_name, .. } if is_inside_view || table_name == view => None,
            AuthAction::Read { table_name, .. } => Some(format!(
                "it reads {table_name}, which is not the view {view}"
            )),
            AuthAction::Function { function_name } if is_pure(function_name) => None,
            AuthAction::Function { function_name } => Some(format!(
                "it calls {function_name}(), which is not allowed there"
            )),
            _ => Some("it does more than compare".to_owned()),
        };
        let Some(refusal) = refusal else {
            return Authorization::Allow;
        };
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.get_or_insert(refusal);
        Authorization::Deny
    }))?;
    Ok(refused)
}

fn is_pure(function: &str) -> bool {
    FUNCTIONS
        .split_whitespace()
        .any(|allowed| function.eq_ignore_ascii_case(allowed))
}

/// Bounds what a condition costs. A name in double quotes is a column, and never silently a text.
pub(super) fn limit(connection: &Connection) -> Result<(), StoreError> {
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    Ok(())
}

/// Whether an error of SQLite's is about the statement or a value that it computes, not about the file or the system.
pub(super) fn is_at_fault(error: &Error) -> bool {
    let code = match error {
        Error::MultipleStatement => return true,
        Error::SqlInputError { error, .. } | Error::SqliteFailure(error, _) => error.code,
        _ => return false,
    };
    matches!(
        code,
        ErrorCode::Unknown
            | ErrorCode::AuthorizationForStatementDenied
            | ErrorCode::TooBig
            | ErrorCode::TypeMismatch
    )
}

/// SQLite's own words.
pub(super) fn message(error: &Error) -> String {
    match error {
        Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}

pub(super) fn bad(reason: String) -> StoreError {
    StoreError::BadCondition { reason }
}
