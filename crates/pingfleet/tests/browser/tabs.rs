//! Tabs of a page whose numbers change once a second: they go on by themselves whatever happens to them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pingfleet_faults::{ChildProcess, Deployment};
use pingfleet_http::Limits;
use pingfleet_wire::StatusKind;
use serde_json::json;

use crate::driver::{Browser, writer};

/// How many targets more have to be stored until a tab that shows nothing new is out of date.
const NEWS: i64 = 4;

/// How long a browser sleeps beside a writer that goes on.
const SLEEP: Duration = Duration::from_mins(1);

/// A sweep that goes on for longer than any test, and a browser. A writer of the same database serves the page.
struct Sweep {
    browser: Browser,
    _running: ChildProcess,
    /// Dropped last: the others have files in its folder.
    deployment: Deployment,
}

impl Sweep {
    fn start() -> Result<(Self, ChildProcess)> {
        let deployment = Deployment::without_broker()?;
        let writer = writer(&deployment)?;
        let slow = ["sweep", "10.0.0.0/20", "--rate=2", "--chunk-size=1"];
        let sweep = deployment.start("pingfleet", &slow)?;
        deployment.wait_for_run("first results", |run| run.chunks_done >= 2)?;
        let browser = Browser::start(&deployment)?;
        let sweep = Self {
            deployment,
            browser,
            _running: sweep,
        };
        Ok((sweep, writer))
    }

    fn stored(&self) -> Result<i64> {
        Ok(self
            .deployment
            .sqlite3("select count(*) from results")?
            .parse()?)
    }

    /// The number of targets that a tab shows as up; all of them are.
    fn shown(&mut self, tab: &str) -> Result<i64> {
        let text = self.browser.text(tab, "#count-up")?;
        text.replace(',', "").parse().with_context(|| text.clone())
    }

    /// Waits until a tab shows what the database has by now.
    fn is_current(&mut self, tab: &str) -> Result<()> {
        let stored = self.stored()?;
        ensure!(stored > 0);
        let began = Instant::now();
        loop {
            let shown = self.shown(tab)?;
            let words = self.browser.text(tab, "#connection")?;
            if shown >= stored && words.is_empty() {
                ensure!(shown <= self.stored()?, "more than there is: {shown}");
                return Ok(());
            }
            let is_late = began.elapsed() > pingfleet_faults::MAX_WAIT;
            ensure!(!is_late, "{tab} shows {shown}, not {stored}: {words}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits until the database has more than a number that was shown.
    fn goes_on(&self, shown: i64) -> Result<()> {
        self.deployment
            .wait_for_run("more results", |run| run.chunks_done >= shown + NEWS)
            .map(drop)
    }

    /// The browser sleeps for this long at least, while targets go on to be stored, and then shows what there is.
    fn sleeps<T>(
        &mut self,
        time: Duration,
        meanwhile: impl FnOnce(&Deployment) -> Result<T>,
    ) -> Result<T> {
        let shown = self.shown("first")?;
        self.browser.act("sleep", "first")?;
        std::thread::sleep(time);
        self.goes_on(shown)?;
        let done = meanwhile(&self.deployment)?;
        let woken = self.browser.act("wake", "first")?;
        let seconds = |name: &str| woken[name].as_f64().context("seconds");
        // The control: it did nothing meanwhile.
        ensure!(seconds("noticed_s")? > seconds("slept_s")? * 0.9, "{woken}");
        self.is_current("first")?;
        Ok(done)
    }

    /// Waits until a tab says that it has no connection.
    fn is_cut_off(&mut self, tab: &str) -> Result<()> {
        self.browser.until("the loss of the connection", |browser| {
            let words = browser.text(tab, "#connection")?;
            Ok(words.starts_with("No connection").then_some(()))
        })
    }
}

#[test]
fn a_second_tab_a_reload_and_a_new_writer_show_current_numbers() -> Result<()> {
    let (mut sweep, before) = Sweep::start()?;
    sweep.browser.open("first", json!({}))?;
    sweep.is_current("first")?;
    sweep.browser.open("second", json!({ "beside": "first" }))?;
    for tab in ["second", "first"] {
        sweep.is_current(tab)?;
    }
    sweep.browser.act("reload", "first")?;
    sweep.is_current("first")?;

    before.kill()?;
    for tab in ["first", "second"] {
        sweep.is_cut_off(tab)?;
    }
    // The control: without a writer the numbers stay, so what changes them later is the new one.
    let old = [sweep.shown("first")?, sweep.shown("second")?];
    sweep.goes_on(old[0].max(old[1]))?;
    assert_eq!([sweep.shown("first")?, sweep.shown("second")?], old);
    let _after = writer(&sweep.deployment)?;
    for tab in ["first", "second"] {
        sweep.is_current(tab)?;
        let faults = sweep.browser.faults(tab, true)?;
        ensure!(faults.is_empty(), "{tab}: {faults:?}");
    }
    Ok(())
}

#[test]
fn a_browser_that_was_asleep_or_offline_shows_current_numbers_again() -> Result<()> {
    let (mut sweep, before) = Sweep::start()?;
    sweep.browser.open("first", json!({}))?;
    sweep.is_current("first")?;

    sweep.sleeps(SLEEP, |_| Ok(()))?;
    // While another writer takes the place of this one, the tab finds its connection gone.
    let second = sweep.sleeps(Duration::ZERO, |deployment| {
        before.kill()?;
        writer(deployment)
    })?;

    // Offline: a connection that is lost does not come back, although the writer does.
    let set = |on: bool| json!({ "do": "offline", "tab": "first", "on": on });
    sweep.browser.ask(&set(true))?;
    second.kill()?;
    sweep.is_cut_off("first")?;
    let _third = writer(&sweep.deployment)?;
    let shown = sweep.shown("first")?;
    sweep.goes_on(shown)?;
    assert_eq!(sweep.shown("first")?, shown);
    sweep.browser.ask(&set(false))?;
    sweep.is_current("first")?;
    let faults = sweep.browser.faults("first", true)?;
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(())
}

#[test]
fn a_tab_too_many_says_so_until_others_are_closed() -> Result<()> {
    let (mut sweep, _writer) = Sweep::start()?;
    sweep.browser.open("first", json!({}))?;
    let most = Limits::default().event_streams - 1;
    let crowd = json!({ "do": "crowd", "streams": most });
    sweep.browser.ask(&crowd)?;
    // The control: the tab that was there before goes on.
    sweep.is_current("first")?;
    sweep.browser.open("last", json!({}))?;
    sweep.browser.until("a word on too many pages", |browser| {
        let words = browser.text("last", "#connection")?;
        Ok(words.starts_with("Too many live pages").then_some(()))
    })?;
    sweep.browser.ask(&json!({ "do": "leave" }))?;
    sweep.is_current("last")
}

#[test]
fn without_javascript_the_page_has_the_same_numbers_and_loads_itself() -> Result<()> {
    let (mut sweep, writer) = Sweep::start()?;
    sweep.browser.open("plain", json!({ "script": false }))?;
    // The control: this tab runs no script, so it has no headings to sort by.
    let html = sweep.browser.act("html", "plain")?;
    let html = html.as_str().context("a document")?;
    ensure!(!html.contains("<button"), "{html}");
    let shown = sweep.shown("plain")?;
    sweep.goes_on(shown)?;
    sweep.is_current("plain")?;
    let faults = sweep.browser.faults("plain", false)?;
    ensure!(faults.is_empty(), "{faults:?}");
    let Sweep {
        deployment,
        mut browser,
        _running: running,
    } = sweep;
    running.kill()?;
    browser.open("live", json!({}))?;
    let counts = |browser: &mut Browser, tab: &str| -> Result<Vec<String>> {
        let statuses = StatusKind::ALL.map(StatusKind::name).into_iter();
        statuses
            .map(|status| browser.text(tab, &format!("#count-{status}")))
            .collect()
    };
    let stored = deployment.sqlite3("select count(*) from results")?;
    let sum = |counts: &[String]| -> u64 {
        let digits = counts
            .iter()
            .map(|text| text.replace(|c: char| !c.is_ascii_digit(), ""));
        digits.filter_map(|digits| digits.parse::<u64>().ok()).sum()
    };
    browser.until("the same numbers in both tabs", |browser| {
        let (plain, live) = (counts(browser, "plain")?, counts(browser, "live")?);
        Ok((plain == live && sum(&plain).to_string() == stored).then_some(()))
    })?;
    drop(writer);
    Ok(())
}
