//! The browser of a test. `browser.py` drives it, with the libraries that scripts/test installs.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use pingfleet_faults::{ChildProcess, Deployment, MAX_WAIT};
use serde::Deserialize;
use serde_json::{Value, json};

/// The address of the page. Each test has a network of its own, so no other program has this port.
pub(crate) const PAGE: &str = "127.0.0.1:8787";

/// The pause between two looks at a page, which changes once a second.
const PAUSE: Duration = Duration::from_millis(300);

/// How long a browser may take to end.
const END: Duration = Duration::from_secs(30);

/// A cell of a table: its text, and the value by which it is sorted, if that is another one.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) value: Option<String>,
}

/// A row of a table by its headings.
pub(crate) type Row = BTreeMap<String, Cell>;

/// A browser in the network of a deployment. It ends with this value.
pub(crate) struct Browser {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    pub(crate) fn start(deployment: &Deployment) -> Result<Self> {
        let own = std::env::current_exe()?;
        // Tests are in the folder `deps` of a profile of the build folder.
        let build = own.ancestors().nth(3).context("the build folder")?;
        let python = build.join("test-python/bin/python");
        ensure!(
            python.exists(),
            "no {}: scripts/test makes it",
            python.display()
        );
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/browser.py");
        let mut command = deployment.namespace()?.command("setpriv");
        let mut child = command
            .args(["--pdeathsig", "KILL"])
            .arg(python)
            .args([script, PAGE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take();
        let answers = child.stdout.take().context("standard output is a pipe")?;
        let mut browser = Self {
            child,
            commands,
            answers: BufReader::new(answers),
        };
        browser.answer()?;
        Ok(browser)
    }

    /// The answer to a command of `browser.py`.
    pub(crate) fn ask(&mut self, command: &Value) -> Result<Value> {
        let commands = self.commands.as_mut().context("the browser runs")?;
        writeln!(commands, "{command}")?;
        self.answer().with_context(|| command.to_string())
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line).with_context(|| {
            format!("no answer of browser.py (apt-get install chromium): {line}")
        })?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{error}");
        }
        Ok(answer["ok"].take())
    }

    /// Opens the page in a tab, with the settings of `open` in `browser.py`.
    pub(crate) fn open(&mut self, tab: &str, mut settings: Value) -> Result<()> {
        settings["do"] = "open".into();
        settings["tab"] = tab.into();
        self.ask(&settings).map(drop)
    }

    /// What `action` of `browser.py` returns for a tab.
    pub(crate) fn act(&mut self, action: &str, tab: &str) -> Result<Value> {
        self.ask(&json!({ "do": action, "tab": tab }))
    }

    /// The text of an element; empty if there is none.
    pub(crate) fn text(&mut self, tab: &str, selector: &str) -> Result<String> {
        let text = self.ask(&json!({ "do": "text", "tab": tab, "selector": selector }))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// The table of a section.
    pub(crate) fn rows(&mut self, tab: &str, section: &str) -> Result<Vec<Row>> {
        let rows = self.ask(&json!({ "do": "rows", "tab": tab, "section": section }))?;
        Ok(serde_json::from_value(rows)?)
    }

    /// The value of an expression of JavaScript in a tab.
    pub(crate) fn call(&mut self, tab: &str, script: &str) -> Result<Value> {
        self.ask(&json!({ "do": "call", "tab": tab, "script": script }))
    }

    /// Looks at a tab again and again until there is an answer.
    pub(crate) fn until<T>(
        &mut self,
        awaited: &str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(answer) = look(self)? {
                return Ok(answer);
            }
            ensure!(began.elapsed() < MAX_WAIT, "waited in vain for {awaited}");
            thread::sleep(PAUSE);
        }
    }

    /// What is wrong with what a tab did since it was opened: a request to another server, one that failed, a dialog, an
    /// error of a script, or something that the content security policy refused. `lost` says whether the writer was away
    /// for a while: then the browser complains of lost connections.
    pub(crate) fn faults(&mut self, tab: &str, lost: bool) -> Result<Vec<String>> {
        let seen = self.act("seen_in", tab)?;
        let list = |name: &str| {
            let list = seen[name].as_array().into_iter().flatten();
            list.filter_map(Value::as_str)
        };
        let own = format!("http://{PAGE}/");
        let foreign = list("requests").filter(|url| {
            let is_here = url.starts_with(&own) || url.starts_with("data:image/png;base64,");
            !is_here
        });
        let console = list("console").filter(|line| !(lost && line.contains("net::ERR_")));
        let others = ["failed", "errors", "dialogs", "refused"];
        let others = others.into_iter().flat_map(list);
        let faults = foreign.chain(console).chain(others);
        let faults: Vec<_> = faults.map(str::to_owned).collect();
        ensure!(list("requests").count() >= 1, "no request was seen");
        Ok(faults)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its input it ends itself and Chromium in order.
        drop(self.commands.take());
        let began = Instant::now();
        while began.elapsed() < END && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(PAUSE);
        }
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts a writer, and waits until it serves the page. It has a broker if the deployment has one.
pub(crate) fn writer(deployment: &Deployment) -> Result<ChildProcess> {
    let mut writer = deployment.start("consumer-writer", &["--dashboard", PAGE])?;
    writer.wait_for_output("live page ready")?;
    Ok(writer)
}
