//! Passwords and tokens are shown nowhere: every program and command with all of its log, against a RabbitMQ that takes the
//! login, and with logins that it refuses. What they print, log, write and serve is searched, and so are their command lines.

mod memory;
mod search;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use pingfleet_testbed::Rabbit;

use self::search::{SAMPLES, Secret};
use crate::{
    live::{DEADLINE, until},
    rig::{Started, TestDir},
};

/// Takes the login of an administrator.
const RIGHT: &str = "frobozz9Right/&?%";

/// Is refused.
const WRONG: &str = "xyzzy7Wrong/&?%";

/// Opens the page and the metrics.
const TOKEN: &str = "plover8Token0123456789";

/// Does not open them.
const WRONG_TOKEN: &str = "quux5Token0123456789";

/// Files that have a secret because they are there for it.
const OWN_FILES: [&str; 8] = [
    "right.toml",
    "right-file.toml",
    "right.txt",
    "wrong.toml",
    "wrong-file.toml",
    "wrong.txt",
    "token.txt",
    "pages.toml",
];

/// Variables of a program.
type Environment<'a> = Vec<(&'a str, String)>;

/// A broker with an administrator of this test, and what must not be found.
struct Site {
    dir: TestDir,
    rabbit: Rabbit,
    secrets: Vec<Secret>,
}

impl Site {
    fn new() -> Result<Self> {
        let rabbit = Rabbit::start_with_management()?;
        rabbit.ctl(&["add_user", "boss", RIGHT])?;
        rabbit.ctl(&["set_user_tags", "boss", "administrator"])?;
        rabbit.ctl(&["set_permissions", "-p", "/", "boss", ".*", ".*", ".*"])?;
        let site = Self {
            dir: TestDir::new()?,
            rabbit,
            secrets: [RIGHT, WRONG, TOKEN, WRONG_TOKEN].map(Secret::new).into(),
        };
        for (name, password) in [("right", RIGHT), ("wrong", WRONG)] {
            let url = site.url(None);
            site.private(&format!("{name}.txt"), &format!("{password}\n"))?;
            let text = format!("[broker]\nurl = \"{url}\"\npassword = \"{password}\"\n");
            site.private(&format!("{name}.toml"), &text)?;
            let text = format!("[broker]\nurl = \"{url}\"\npassword_file = \"{name}.txt\"\n");
            site.private(&format!("{name}-file.toml"), &text)?;
        }
        site.private("token.txt", TOKEN)?;
        Ok(site)
    }

    /// Writes a file that only its owner may read.
    fn private(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.write(name, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// The URL of the administrator's login, with its password or without.
    fn url(&self, password: Option<&str>) -> String {
        let encode = |text: &str| -> String {
            url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
        };
        let password = password.map_or_else(String::new, |text| format!(":{}", encode(text)));
        format!("amqp://boss{password}@127.0.0.1:{}/", self.rabbit.port())
    }

    /// Each way to give a password: its arguments and its variables.
    fn sources(&self, name: &str, password: &str) -> Vec<(Vec<String>, Environment<'static>)> {
        let url = ("PINGFLEET_BROKER__URL", self.url(None));
        let no_url = vec![("PINGFLEET_BROKER__URL", String::new())];
        let config = |file: &str| vec!["--config".to_owned(), format!("{name}{file}")];
        let file = format!("{name}.txt");
        vec![
            (
                vec![],
                vec![("PINGFLEET_BROKER__URL", self.url(Some(password)))],
            ),
            (
                vec![],
                vec![
                    url.clone(),
                    ("PINGFLEET_BROKER__PASSWORD", password.to_owned()),
                ],
            ),
            (vec![], vec![url, ("PINGFLEET_BROKER__PASSWORD_FILE", file)]),
            (config(".toml"), no_url.clone()),
            (config("-file.toml"), no_url),
        ]
    }

    /// Fails if one of the secrets is in there.
    fn search(&self, place: &str, bytes: &[u8]) -> Result<()> {
        for secret in &self.secrets {
            if let Some(form) = secret.find(bytes) {
                let text = String::from_utf8_lossy(bytes);
                anyhow::bail!("{place} shows {secret} {form}: {text}");
            }
        }
        Ok(())
    }

    /// Searches all files below the folder but those that are there for a secret. Returns how many there were.
    fn search_files(&self, folder: &Path) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                // Those of `broker init`.
                if name != "credentials" {
                    count += self.search_files(&entry.path())?;
                }
            } else if !OWN_FILES.contains(&name.as_str()) {
                self.search(&name, &fs::read(entry.path())?)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Runs a program to its end with all of its log, and searches what it says.
    fn run(&self, program: &str, arguments: &[&str], environment: &Environment<'_>) -> Result<i32> {
        let mut call = self.dir.call(program, &[arguments, &["-vv"]].concat())?;
        call = call.env("PINGFLEET_LOG", "trace");
        for (name, value) in environment {
            call = call.env(name, value);
        }
        let finished = call.end()?;
        self.search(&finished.name, finished.stdout.as_bytes())?;
        self.search(&finished.name, finished.stderr.as_bytes())?;
        ensure!(!finished.stderr.contains("panicked"), "{finished:#?}");
        finished.code.context("it was killed")
    }

    /// Starts a program with all of its log.
    fn start(
        &self,
        program: &str,
        arguments: &[&str],
        environment: &Environment<'_>,
    ) -> Result<Started> {
        let mut environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        environment.push(("PINGFLEET_LOG", "trace"));
        let arguments = [arguments, &["-vv"]].concat();
        self.dir.start_captured(program, &arguments, &environment)
    }

    /// The log of a started program.
    fn log(&self, program: &str) -> Result<String> {
        Ok(fs::read_to_string(
            self.dir.path(&format!("{program}.log")),
        )?)
    }

    /// The password in a file of `broker init`. From now on it must not be found either.
    fn learn_login(&mut self, file: &str) -> Result<()> {
        let text = fs::read_to_string(self.dir.path(file))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("password = \""));
        let password = line.and_then(|line| line.strip_suffix('"'));
        self.secrets
            .push(Secret::new(password.context("a password")?));
        Ok(())
    }

    /// What a page answers to a request.
    fn ask(address: &str, path: &str, header: &str) -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\n{header}Connection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A page takes the token, and shows neither it nor a wrong one.
    fn visit(&self, program: &str, path: &str) -> Result<()> {
        let address = until("the address of a page", || {
            let log = self.log(program)?;
            let address = log.split_once("http://").map(|(_, rest)| rest);
            Ok(address.and_then(|rest| Some(rest.split_once('/')?.0.to_owned())))
        })?;
        let answer = Self::ask(
            &address,
            path,
            &format!("Authorization: Bearer {TOKEN}\r\n"),
        )?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        self.search(&format!("{program} {path}"), answer.as_bytes())?;
        for (path, header) in [
            (format!("{path}?token={WRONG_TOKEN}"), String::new()),
            (
                path.to_owned(),
                format!("Authorization: Bearer {WRONG_TOKEN}\r\n"),
            ),
            (path.to_owned(), format!("Cookie: token={WRONG_TOKEN}\r\n")),
        ] {
            let answer = Self::ask(&address, &path, &header)?;
            ensure!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
            self.search(&format!("{program} {path}"), answer.as_bytes())?;
        }
        Ok(())
    }

    /// Nobody reads a secret in the command line of a running program.
    fn search_command_line(&self, started: &Started, program: &str) -> Result<()> {
        let line = started.command_line()?;
        ensure!(line.contains(program), "{line}");
        self.search("the command line", line.as_bytes())
    }

    /// Ends a program in order.
    fn stop(&self, started: &mut Started, program: &str) -> Result<()> {
        let pid = started.pid().to_string();
        ensure!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()?
                .success()
        );
        let code = started.wait()?;
        ensure!(
            code == Some(130) || code == Some(0),
            "{code:?}: {}",
            self.log(program)?
        );
        Ok(())
    }
}

#[test]
fn the_search_finds_a_secret_in_every_form() -> Result<()> {
    let site = Site::new()?;
    let secret = Secret::new(RIGHT);
    for sample in SAMPLES {
        let text = sample(RIGHT);
        ensure!(secret.find(text.as_bytes()).is_some(), "{text}");
        ensure!(Secret::new(WRONG).find(text.as_bytes()).is_none(), "{text}");
        // What is in a file of the folder is found as well.
        let name = "folder";
        fs::create_dir_all(site.dir.path(name))?;
        site.dir
            .write("folder/file", format!("before {text} behind"))?;
        ensure!(site.search_files(&site.dir.path(name)).is_err(), "{text}");
    }
    // The files with the secrets do have them, and a variable reaches its program.
    for file in ["right.toml", "right.txt"] {
        ensure!(
            secret.find(&fs::read(site.dir.path(file))?).is_some(),
            "{file}"
        );
    }
    let environment = vec![("PINGFLEET_BROKER__PASSWORD", RIGHT.to_owned())];
    let worker = site.start("ping-worker", &[], &environment)?;
    until("the variables of a program", || {
        let variables = fs::read(format!("/proc/{}/environ", worker.pid()))?;
        Ok(secret.find(&variables))
    })?;
    Ok(())
}

#[test]
fn a_login_that_is_refused_is_shown_nowhere() -> Result<()> {
    let site = Site::new()?;
    for (source, environment) in site.sources("wrong", WRONG) {
        let source: Vec<&str> = source.iter().map(String::as_str).collect();
        for (program, arguments) in [
            ("producer", ["127.0.0.1"].as_slice()),
            ("ping-worker", &["--log-format", "json"]),
            ("consumer-writer", &[]),
            ("pingfleet", &["broker", "init"]),
            ("pingfleet", &["broker", "show"]),
        ] {
            let arguments = [arguments, &source].concat();
            let code = site.run(program, &arguments, &environment)?;
            ensure!(code == 4, "{program} {arguments:?} ended with {code}");
        }
        site.run(
            "pingfleet",
            &[&["doctor"], source.as_slice()].concat(),
            &environment,
        )?;
    }
    ensure!(site.search_files(&site.dir.path(""))? > 0);
    Ok(())
}

/// `pingfleet broker` as the administrator, with the password from one of the sources.
fn administrate(site: &Site, arguments: &[&str], source: usize) -> Result<()> {
    let management = site.rabbit.management_url()?;
    let (flags, environment) = site.sources("right", RIGHT).swap_remove(source);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let management = ["--management", management.as_str()];
    let command = [&["broker"], arguments, &management, &flags].concat();
    let code = site.run("pingfleet", &command, &environment)?;
    ensure!(code == 0, "{command:?} ended with {code}");
    Ok(())
}

/// A sweep by all roles, with the logins of their files. Writer and worker go on.
fn sweep(site: &Site) -> Result<[Started; 2]> {
    let no_url = ("PINGFLEET_BROKER__URL", String::new());
    let started = |program: &str, login: &str, section: [&'static str; 2]| {
        let environment = vec![
            no_url.clone(),
            (section[0], "127.0.0.1:0".to_owned()),
            (section[1], "token.txt".to_owned()),
        ];
        let login = format!("credentials/{login}.toml");
        let started = site.start(program, &["--config", &login], &environment)?;
        anyhow::Ok(started)
    };
    let writer = started(
        "consumer-writer",
        "writer",
        [
            "PINGFLEET_DASHBOARD__LISTEN",
            "PINGFLEET_DASHBOARD__TOKEN_FILE",
        ],
    )?;
    let worker = started(
        "ping-worker",
        "worker-one",
        ["PINGFLEET_METRICS__LISTEN", "PINGFLEET_METRICS__TOKEN_FILE"],
    )?;
    let producer = ["127.0.0.0/29", "--config", "credentials/producer.toml"];
    ensure!(site.run("producer", &producer, &vec![no_url])? == 0);
    site.search_command_line(&writer, "consumer-writer")?;
    site.search_command_line(&worker, "ping-worker")?;
    Ok([writer, worker])
}

/// What reads or changes the database.
const COMMANDS: [&[&str]; 20] = [
    &["sweep", "127.0.0.1"],
    &["runs"],
    &["runs", "--json"],
    &["report"],
    &["report", "--json"],
    &["report", "--html", "report.html"],
    &["export", "-o", "rows.csv"],
    &["diff"],
    &["hosts"],
    &["history", "127.0.0.1"],
    &["workers"],
    &["workers", "--json"],
    &["verify"],
    &["quarantine"],
    &["doctor"],
    &["cancel", "1"],
    &["retry", "1", "--dead"],
    &["resume", "1"],
    &["prune", "--keep", "1", "--dry-run"],
    &["help"],
];

#[test]
fn a_login_that_is_taken_is_shown_nowhere() -> Result<()> {
    let mut site = Site::new()?;
    administrate(&site, &["init"], 0)?;
    administrate(&site, &["add-worker", "one"], 1)?;
    for login in ["producer", "writer", "worker-one"] {
        site.learn_login(&format!("credentials/{login}.toml"))?;
    }
    administrate(&site, &["init"], 2)?;
    for source in 0..5 {
        administrate(&site, &["show"], source)?;
    }
    administrate(&site, &["show", "--json"], 3)?;
    let [mut writer, mut worker] = sweep(&site)?;
    site.visit("consumer-writer", "/")?;
    site.visit("consumer-writer", "/metrics")?;
    site.visit("ping-worker", "/metrics")?;
    // With what is not in the database yet.
    let files = site.search_files(&site.dir.path(""))?;
    ensure!(
        site.dir.path("pingfleet.db").exists() && files >= 5,
        "{files} files"
    );
    // They know the password, and need none.
    let environment = vec![("PINGFLEET_BROKER__URL", site.url(Some(RIGHT)))];
    for arguments in COMMANDS {
        site.run("pingfleet", arguments, &environment)?;
    }
    site.stop(&mut worker, "ping-worker")?;
    site.stop(&mut writer, "consumer-writer")?;
    let foreign = ["broker", "foreign", "--config", "right-file.toml"];
    let no_url = vec![("PINGFLEET_BROKER__URL", String::new())];
    ensure!(site.run("pingfleet", &foreign, &no_url)? == 0);
    administrate(&site, &["init", "--renew"], 1)?;
    administrate(&site, &["remove-worker", "one"], 3)?;
    for login in ["producer", "writer"] {
        site.learn_login(&format!("credentials/{login}.toml"))?;
    }
    // The control: they have logged what they did.
    for (program, line) in [
        ("ping-worker", "worker ready"),
        ("consumer-writer", "run closed"),
    ] {
        let log = site.log(program)?;
        ensure!(log.contains(line), "{log}");
    }
    site.search_files(&site.dir.path(""))?;
    Ok(())
}
