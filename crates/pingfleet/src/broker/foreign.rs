//! `broker foreign`: lists what writers set aside because it is for another database, and returns it to its queue.
//!
//! Invariant: a message is acked only after the broker confirmed it in the queue to which it returns. What is not returned
//! stays.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use pingfleet_broker::{
    Broker, BrokerError, Confirmed, Consumer, Delivery, DeliveryTag, MAX_FOREIGN_MESSAGES, Origin,
    Publisher, QueueName, REPLY_TIMEOUT, RabbitBroker, RabbitConfig,
};
use pingfleet_report::words::{counted, grouped};
use pingfleet_settings::{BrokerArgs, Exit, FILES_FOR_QUEUES, Failure, Layers, printed, run_async};
use pingfleet_wire::{Message as _, ResultChunk, WorkChunk};
use serde_json::json;
use uuid::Uuid;

use crate::{
    ended_run::usage,
    report::{layout, write_json},
};

/// Messages that are published before their confirms are awaited.
const AT_ONCE: usize = 50;

/// How often the depth of a queue is read while messages return to it. The broker announces none.
const DEPTH_INTERVAL: Duration = Duration::from_millis(50);

/// Digits of a UUID.
const UUID_DIGITS: usize = 32;

/// Arguments of `pingfleet broker foreign`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet broker foreign
  pingfleet broker foreign --json
  pingfleet broker foreign --return 0f0e0d0c

A writer sets aside results for other databases. Before they are returned,
stop the writer of the wrong database, or it sets them aside again.
Log in as the writer: it believes only its own login what worker a result is of.
`consumer-writer` names its database when it starts.")]
pub(crate) struct ForeignArgs {
    /// Return what is for this database: its UUID or the beginning of it
    #[arg(long = "return", value_name = "DATABASE")]
    database: Option<String>,
    /// JSON, one database per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// What is set aside for one database. None is for messages that cannot be read.
#[derive(Debug, Default)]
struct ForDatabase {
    results: u64,
    dead_letters: u64,
    bytes: u64,
    returned: u64,
}

type Found = BTreeMap<Option<Uuid>, ForDatabase>;

pub(crate) fn foreign(
    args: &ForeignArgs,
    mut layers: Layers,
    quiet: bool,
) -> Result<Exit, Failure> {
    let config = RabbitConfig::resolve(&args.broker, &mut layers, "pingfleet");
    layers.finish()?;
    let wanted = args.database.as_deref().map(beginning).transpose()?;
    let found = run_async(FILES_FOR_QUEUES, read(&config, wanted.as_deref()))?;
    if args.json {
        print_json(&found)?;
    } else {
        print(&found)?;
    }
    if found.is_empty() && !quiet {
        // If standard error is closed, nobody can read it.
        drop(writeln!(
            io::stderr(),
            "nothing is set aside for another database"
        ));
    }
    Ok(Exit::Complete)
}

/// The digits of a UUID or of its beginning.
fn beginning(text: &str) -> Result<String, Failure> {
    let digits = text.to_ascii_lowercase().replace('-', "");
    let is_hexadecimal = digits.chars().all(|digit| digit.is_ascii_hexdigit());
    if is_hexadecimal && (4..=UUID_DIGITS).contains(&digits.len()) {
        Ok(digits)
    } else {
        Err(usage(
            "--return needs the UUID of a database, or 4 digits or more of its beginning",
        ))
    }
}

async fn read(config: &RabbitConfig, wanted: Option<&str>) -> Result<Found, Failure> {
    let broker = RabbitBroker::new(config)?;
    let found = find(&broker, wanted).await;
    broker.close().await;
    found
}

async fn find(broker: &RabbitBroker, wanted: Option<&str>) -> Result<Found, Failure> {
    broker.ensure(&[QueueName::FOREIGN]).await?;
    let Some(digits) = wanted else {
        return look(broker, None).await;
    };
    let database = if digits.len() == UUID_DIGITS {
        Uuid::try_parse(digits).map_err(usage)?
    } else {
        the_only(&look(broker, None).await?, digits)?
    };
    look(broker, Some(database)).await
}

/// The database whose UUID begins with these digits.
fn the_only(found: &Found, digits: &str) -> Result<Uuid, Failure> {
    let databases = found.keys().flatten();
    let matching: Vec<_> = databases
        .filter(|database| database.simple().to_string().starts_with(digits))
        .collect();
    match matching.as_slice() {
        [one] => Ok(**one),
        [] => Err(usage(format!(
            "nothing is set aside for a database that begins with {digits}"
        ))),
        several => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(usage(format!(
                "{digits} is the beginning of several databases: {}",
                several.join(", ")
            )))
        }
    }
}

/// Looks at each message, and returns those for one database. The others are in the queue again at the end.
async fn look(broker: &RabbitBroker, returned: Option<Uuid>) -> Result<Found, Failure> {
    let ready = broker.depth(QueueName::FOREIGN).await?.ready;
    let mut found = Found::new();
    if ready == 0 {
        return Ok(found);
    }
    let mut consumer = broker
        .consumer(QueueName::FOREIGN, MAX_FOREIGN_MESSAGES)
        .await?;
    let mut returning = match returned {
        Some(_) => Some(Returning::open(broker).await?),
        None => None,
    };
    let mut kept = 0;
    for _ in 0..ready {
        // Another program may have taken some.
        let Ok(delivery) = tokio::time::timeout(REPLY_TIMEOUT, consumer.next()).await else {
            break;
        };
        let delivery = delivery?;
        let (database, queue) = addressed(&delivery.body);
        let entry = found.entry(database).or_default();
        match queue {
            QueueName::DEAD => entry.dead_letters += 1,
            _ => entry.results += 1,
        }
        entry.bytes += delivery.body.len() as u64;
        if let Some(returning) = &mut returning
            && database == returned
        {
            entry.returned += 1;
            returning.add(queue, delivery);
            if returning.waiting.len() >= AT_ONCE {
                returning.flush(&mut *consumer).await?;
            }
        } else {
            kept += 1;
        }
    }
    if let Some(mut returning) = returning {
        returning.flush(&mut *consumer).await?;
        returning.publisher.close().await;
    }
    // What was not acked returns to the queue.
    consumer.close().await;
    wait_for_depth(broker, kept).await?;
    Ok(found)
}

/// Waits until messages are ready again, which is soon after the end of their consumer: the next command shall see them.
async fn wait_for_depth(broker: &RabbitBroker, messages: u32) -> Result<(), BrokerError> {
    let back = async {
        while broker.depth(QueueName::FOREIGN).await?.ready < messages {
            tokio::time::sleep(DEPTH_INTERVAL).await;
        }
        Ok(())
    };
    // Another program may have taken some.
    tokio::time::timeout(REPLY_TIMEOUT, back)
        .await
        .unwrap_or(Ok(()))
}

/// The database of a message, and the queue from which it was taken.
fn addressed(body: &[u8]) -> (Option<Uuid>, QueueName) {
    if let Ok(result) = ResultChunk::decode(body) {
        return (Some(result.database), QueueName::RESULTS);
    }
    match WorkChunk::decode(body) {
        Ok(work) => (Some(work.database), QueueName::DEAD),
        Err(_) => (None, QueueName::RESULTS),
    }
}

/// Messages on their way back.
struct Returning {
    publisher: Box<dyn Publisher>,
    waiting: Vec<(QueueName, Delivery)>,
}

impl Returning {
    async fn open(broker: &RabbitBroker) -> Result<Self, BrokerError> {
        broker
            .ensure(&[QueueName::RESULTS, QueueName::DEAD])
            .await?;
        Ok(Self {
            publisher: broker.publisher().await?,
            waiting: Vec::new(),
        })
    }

    fn add(&mut self, queue: QueueName, delivery: Delivery) {
        self.waiting.push((queue, delivery));
    }

    /// Publishes what waits, and acks it after the confirms.
    async fn flush(&mut self, consumer: &mut dyn Consumer) -> Result<(), Failure> {
        let mut confirms = Vec::new();
        for (queue, delivery) in self.waiting.drain(..) {
            // The writer has the login of the worker in the header, because it set the message aside under its own.
            let origin = Origin {
                dead_letter_reason: delivery.dead_letter_reason.as_deref(),
                login: delivery.original_login.as_deref(),
            };
            let publish = self.publisher.publish_again(queue, &delivery.body, origin);
            let confirm = publish.await?;
            confirms.push((delivery.tag, confirm));
        }
        let mut stored: Vec<DeliveryTag> = Vec::new();
        for (tag, confirm) in confirms {
            if confirm.await? == Confirmed::Stored {
                stored.push(tag);
            } else {
                consumer.ack(&stored).await?;
                return Err(Failure::new(
                    Exit::System,
                    "the broker did not take a message back; it stays set aside: repair the queues with `pingfleet broker init`, \
                     and try again",
                ));
            }
        }
        Ok(consumer.ack(&stored).await?)
    }
}

fn name(database: Option<Uuid>) -> String {
    database.map_or_else(|| "unreadable".to_owned(), |database| database.to_string())
}

fn print_json(found: &Found) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for (database, counts) in found {
        let fields = [
            ("database", json!(database.map(|it| it.to_string()))),
            ("results", json!(counts.results)),
            ("dead_letters", json!(counts.dead_letters)),
            ("bytes", json!(counts.bytes)),
            ("returned", json!(counts.returned)),
        ];
        printed(write_json(&mut out, fields))?;
    }
    Ok(())
}

fn print(found: &Found) -> Result<(), Failure> {
    if found.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = found
        .iter()
        .map(|(database, counts)| {
            vec![
                name(*database),
                grouped(counts.results as i64),
                grouped(counts.dead_letters as i64),
                grouped(counts.bytes as i64),
            ]
        })
        .collect();
    // At most 60 columns.
    let heading = ["DATABASE", "RESULTS", "DEAD", "BYTES"];
    let table = layout::columns(&heading, &[false, true, true, true], &rows);
    let returned: u64 = found.values().map(|counts| counts.returned).sum();
    let mut blocks = vec![table];
    if returned > 0 {
        let sentence = format!("{} returned.", counted(returned as i64, "message"));
        blocks.push(vec![layout::Line::new(&sentence)]);
    }
    layout::print(&blocks)
}
