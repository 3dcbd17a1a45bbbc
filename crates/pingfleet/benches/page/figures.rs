//! Figures beside what is promised.

/// Some values of one figure.
pub(crate) struct Spread {
    /// Sorted.
    values: Vec<f64>,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { values }
    }
}

/// Prints a figure: the median, and the least and the greatest value if there are several.
pub(crate) fn promised(what: &str, spread: &Spread, digits: usize, promise: &str) {
    let values = &spread.values;
    let text = match values.as_slice() {
        [] => "not measured".to_owned(),
        [one] => format!("{one:.digits$}"),
        [least, .., most] => {
            let median = values[values.len() / 2];
            format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
        }
    };
    println!("{what:60}{text:>28}{promise:>10}");
}
