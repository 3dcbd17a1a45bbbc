//! Names from workers and targets that would run if they were not escaped, in a real browser.

use anyhow::{Context, Result, ensure};
use pingfleet_faults::Deployment;
use pingfleet_testbed::GeneratedRuns;
use rusqlite::Connection;
use serde_json::json;

use crate::{
    driver::{Browser, writer},
    states::insert_worker,
};

const WORKER: &str = "<script>alert(1)</script>";
const TARGET: &str = "o'brien\"<img src=x onerror=alert(2)>.example.net";

/// A deployment with a generated database.
pub(crate) fn generated(targets: u32, runs: u32) -> Result<Deployment> {
    let deployment = Deployment::without_broker()?;
    let generated = GeneratedRuns {
        targets,
        runs,
        seed: 7,
    };
    generated.write(&deployment.database())?;
    Ok(deployment)
}

#[test]
fn hostile_names_are_text_and_every_request_is_for_the_page_itself() -> Result<()> {
    let deployment = generated(300, 1)?;
    let connection = Connection::open(deployment.database())?;
    insert_worker(&connection, 1, WORKER, 0)?;
    // A target with that name, whose change is the newest.
    connection.execute_batch(
        "CREATE TEMP TABLE chosen AS SELECT target, run, chunk, position FROM latest_rows WHERE status > 1 LIMIT 1",
    )?;
    let renamed = connection.execute(
        "UPDATE results SET name = ?1
         WHERE (run, chunk, position) IN (SELECT run, chunk, position FROM chosen)",
        [TARGET],
    )?;
    let listed = connection.execute(
        "UPDATE latest_rows SET target = ?1, changed_at_us = unixepoch() * 1000000
         WHERE target IN (SELECT target FROM chosen)",
        [TARGET],
    )?;
    assert_eq!((renamed, listed), (1, 1));
    let _writer = writer(&deployment)?;
    let mut browser = Browser::start(&deployment)?;
    browser.open("first", json!({}))?;
    let workers = browser.rows("first", "workers")?;
    let names: Vec<_> = workers
        .iter()
        .map(|row| row["worker"].text.trim())
        .collect();
    ensure!(names.contains(&WORKER), "{names:?}");
    let targets = browser.rows("first", "changes")?;
    let targets: Vec<_> = targets
        .iter()
        .map(|row| row["target"].text.trim())
        .collect();
    ensure!(targets.contains(&TARGET), "{targets:?}");
    let inside = browser.call(
        "first",
        "document.querySelectorAll('main script, main img[onerror]').length",
    )?;
    assert_eq!(inside, 0);
    let faults = browser.faults("first", false)?;
    ensure!(faults.is_empty(), "{faults:?}");

    notices_faults(&mut browser)
}

/// The controls: each kind of fault would have been noticed.
fn notices_faults(browser: &mut Browser) -> Result<()> {
    let hostile = serde_json::to_string(TARGET)?;
    for (script, noticed) in [
        (
            format!(
                "void document.querySelector('main').insertAdjacentHTML('beforeend', {hostile})"
            ),
            "script-src-attr",
        ),
        (
            "void (new Image().src = 'http://10.0.0.1/picture.png')".to_owned(),
            "http://10.0.0.1",
        ),
        ("alert('heard')".to_owned(), "heard"),
        (
            "void setTimeout(function () { throw new Error('thrown'); })".to_owned(),
            "thrown",
        ),
    ] {
        browser.call("first", &script)?;
        browser
            .until(noticed, |browser| {
                let faults = browser.faults("first", false)?;
                let found = faults.iter().find(|fault| fault.contains(noticed));
                Ok(found.map(|_| ()))
            })
            .with_context(|| script.clone())?;
    }
    Ok(())
}
