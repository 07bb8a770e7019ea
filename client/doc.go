// Package client is the Go client of Cantus: it appends transactions, follows
// partitions, and runs functions as transactions against a local view.
//
//	c, err := client.New(nc, client.Options{}) // nc is a *nats.Conn
//	receipt, err := c.Append(ctx, &client.Tx{
//		Payload:       []byte(`{"balance":90}`),
//		WriteLocks:    []string{"account.42"},
//		HighWaterMark: 0, // how far the writer had applied the partition
//	})
//	fmt.Println("committed as", receipt.Txid)
//
//	err = c.Follow(ctx, client.Positions{0: 0}, func(_ context.Context, tx *client.Transaction) error {
//		fmt.Printf("%d: %s\n", tx.Txid, tx.Payload)
//		return nil
//	}, client.FollowOptions{})
//
// Its nouns:
//
//   - [Client], over a NATS connection that the caller owns.
//   - [Tx], a transaction to append, and [Receipt], the proof that it committed.
//   - [Follower], which hands every committed [Transaction] to a [Handler], once,
//     in txid order and without a gap, for each partition by itself.
//   - [Transactor], which runs a function at a known high-water mark of a local
//     [View], appends what it made, and runs it again when it met a conflict.
//   - [Cursor], a position that the log itself keeps.
//
// Package [github.com/cantuslog/cantus/client/sqlview] is a [View] in a SQL
// database, package [github.com/cantuslog/cantus/client/group] shares partitions
// among consumers, and package [github.com/cantuslog/cantus/cantustest] runs a log
// for tests.
//
// It speaks what subjects.md says and nothing else, and needs only nats.go.
//
// # Guarantees
//
// When [Client.Append] returns a [Receipt] the transaction is committed: synced on a
// majority of the partition's replicas. It was appended exactly once however
// often it had to be sent: every transaction has a message id, made up where
// none was given, and is sent again with that id (after no answer, `unknown`,
// `unavailable`, `busy`, "no responders", a lost connection) until it is
// settled or its time is over. A refusal that sending again can't cure comes
// back at once as a [*RefusedError] or [*ConflictError], which hold all that the
// reply said. Where time ends before the outcome is known the error is an
// [*UnknownOutcomeError] with the message id; every other error means that nothing
// was appended.
//
// A node remembers ids for two minutes. [Options.Timeout] stays well below it.
//
// # Batches
//
// Each partition has one sender. A transaction that comes while nothing is in
// flight leaves at once. While three batches are in flight others gather, and
// the next batch takes them all; no timer makes anyone wait. Transactions are
// encoded into the batch where they gather, so that sending again is sending
// the same bytes.
//
// Transactions appended one after the other to one partition commit in that
// order as long as none has to be sent again. No order is promised beyond that:
// a writer that needs one waits for the receipt, or sets [Tx.ExpectedLast].
//
// # Following
//
// A stream joins reads and the feed by txid. While it is behind it reads, the
// next read asked for when the last one ended and the handler's backlog is
// below [FollowOptions.BufferBytes]. Level, it takes the packed feed. A txid that
// is not the next one, a reconnect and a silent feed each make it read. So nothing
// that is lost on the wire, by a slow consumer or around a change of leader is
// lost to the handler.
//
// The feed is signed. A message that the cluster's key does not verify, whoever
// sent it, is dropped and counted, and the stream reads. The key is asked for
// unless [Options.FeedKey] has it.
//
//	feed ──► verified? txid == next? ──► queue ──► handler, one goroutine a partition
//	          gap: read ──────►
//
// # Concurrency
//
// All methods are safe for concurrent use, except that a [Tx] and a
// [Transaction] belong to one goroutine at a time. Goroutines: one per client, one
// per partition that was appended to, two per partition that is followed.
package client
