//! Which rows of a run are read. All filters that are given must hold.

use std::net::IpAddr;

use ipnet::IpNet;
use pingfleet_wire::StatusKind;
use rusqlite::{Connection, Statement, functions::FunctionFlags, types::ValueRef};

use super::condition::{self, Condition};
use crate::{StoreError, address::shown_address};

/// Which rows of a run to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportFilter {
    /// Only these statuses. All when empty.
    pub statuses: Vec<StatusKind>,
    /// Only targets with these labels, as key and value. A key that comes more than once may have any of its values.
    pub labels: Vec<(String, String)>,
    /// Only targets whose probed address is in one of these networks. All when empty.
    pub subnets: Vec<IpNet>,
    /// Only rows for which this is true.
    pub condition: Option<Condition>,
}

impl ReportFilter {
    /// The filter as SQL. Its parameters begin with number `first`.
    pub(crate) fn sql(&self, first: usize) -> FilterSql {
        let mut sql = FilterSql {
            on_tables: String::new(),
            condition: self.condition.as_ref().map(Condition::as_operand),
            first,
            values: Vec::new(),
            subnets: self.subnets.clone(),
        };
        if !self.statuses.is_empty() {
            let codes = self.statuses.iter().map(|status| status.code().to_string());
            sql.add(&format!("r.status IN ({})", list(codes)));
        }
        for (at, (key, _)) in self.labels.iter().enumerate() {
            if self.labels[..at].iter().any(|(earlier, _)| earlier == key) {
                continue;
            }
            let key_parameter = sql.parameter(key);
            let values = self.labels.iter().filter(|(other, _)| other == key);
            let values: Vec<_> = values.map(|(_, value)| sql.parameter(value)).collect();
            sql.add(&format!(
                "EXISTS (SELECT 1 FROM json_each(l.labels) e WHERE e.key = {key_parameter} AND e.value IN ({}))",
                list(values)
            ));
        }
        if !self.subnets.is_empty() {
            sql.add("in_subnets(r.address)");
        }
        sql
    }
}

/// A [`ReportFilter`] as SQL.
#[derive(Debug)]
pub(crate) struct FilterSql {
    /// Conditions on `results r` and `labels l`, each behind an AND.
    on_tables: String,
    /// A condition on the columns of the view, in parentheses.
    condition: Option<String>,
    first: usize,
    values: Vec<String>,
    subnets: Vec<IpNet>,
}

impl FilterSql {
    fn add(&mut self, condition: &str) {
        self.on_tables += " AND ";
        self.on_tables += condition;
    }

    fn parameter(&mut self, value: &str) -> String {
        self.values.push(value.to_owned());
        format!("?{}", self.first + self.values.len() - 1)
    }

    /// `columns` of the rows that a statement with the columns of `view` selects. It ends in its WHERE clause.
    pub(crate) fn select(&self, columns: &str, view: &str, statement: &str) -> String {
        let statement = format!("{statement}{}", self.on_tables);
        // The condition sees the names of the view only, and cannot weaken what selects the run and the page.
        let condition = self.condition.as_deref().unwrap_or("1");
        format!("SELECT {columns} FROM ({statement}) AS {view} WHERE {condition}")
    }

    /// The filter as conditions on `results r` alone, each behind an AND. None for one that reads other columns as well.
    pub(crate) fn on_results(&self) -> Option<&str> {
        // The values are those of labels.
        (self.condition.is_none() && self.values.is_empty()).then_some(&self.on_tables)
    }

    /// Makes a connection ready for a statement with this filter.
    pub(crate) fn prepare(&self, connection: &Connection) -> Result<(), StoreError> {
        if !self.subnets.is_empty() {
            let subnets = self.subnets.clone();
            connection.create_scalar_function(
                "in_subnets",
                1,
                FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC,
                move |context| {
                    let address = probed(context.get_raw(0));
                    Ok(address.is_some_and(|address| {
                        subnets.iter().any(|subnet| subnet.contains(&address))
                    }))
                },
            )?;
        }
        if self.condition.is_some() {
            condition::limit(connection)?;
        }
        Ok(())
    }

    /// Binds the parameters of a statement: those before this filter's, and its own.
    pub(crate) fn bind(
        &self,
        statement: &mut Statement<'_>,
        before: &[i64],
    ) -> rusqlite::Result<()> {
        for (at, value) in (1..).zip(before) {
            statement.raw_bind_parameter(at, value)?;
        }
        for (at, value) in (self.first..).zip(&self.values) {
            statement.raw_bind_parameter(at, value)?;
        }
        Ok(())
    }

    /// What a failed statement with this filter means: its condition may be wrong for the value of a row.
    pub(crate) fn explain(&self, error: rusqlite::Error) -> StoreError {
        if self.condition.is_some() && condition::is_at_fault(&error) {
            condition::bad(condition::message(&error))
        } else {
            error.into()
        }
    }
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<_> = items.into_iter().collect();
    items.join(", ")
}

/// The address in the column `address`.
fn probed(stored: ValueRef<'_>) -> Option<IpAddr> {
    match stored {
        ValueRef::Integer(number) => shown_address(number).map(IpAddr::V4),
        ValueRef::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}
