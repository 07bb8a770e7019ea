// Package client is the Go client of Cantus. It appends transactions, follows
// partitions, and runs functions as transactions against a local view.
//
//	c, err := client.New(nc, client.Options{}) // nc is a *nats.Conn
//	receipt, err := c.Append(ctx, &client.Request{
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
// The main types:
//
//   - [Client] uses a NATS connection that the caller owns.
//   - [Request] is a transaction to append, and [Receipt] the proof that it
//     committed.
//   - [AtomicBatch] is transactions that commit together or not at all, and
//     [Client.AppendAtomic] appends them.
//   - [Session] is transactions of one writer, which sends on without waiting,
//     although each changes what the one before it has changed.
//   - [Follower] passes every committed [Transaction] to a [Handler], once, in
//     txid order and without a gap within each partition.
//   - [Transactor] runs a function at a known high-water mark of a local
//     [View], appends the transaction that it made, and runs it again after a
//     conflict.
//   - [Query] selects transactions by their kinds and locks, and
//     [Client.Query] returns them with the mark of the state that they make.
//   - [Decide] makes a decision from such transactions, and appends it unless
//     there are more of them by then.
//   - [Cursor] is a position that is stored in the log itself.
//
// Package [github.com/cantuslog/cantus/client/sqlview] is a [View] in a SQL
// database, package [github.com/cantuslog/cantus/client/group] shares
// partitions among consumers, and package
// [github.com/cantuslog/cantus/cantustest] runs a log for tests.
//
// The client uses only the protocol of subjects.md, and depends only on
// nats.go.
//
// # Guarantees
//
// When [Client.Append] returns a [Receipt], the transaction is committed: it is
// synced on a majority of the partition's replicas. It was appended exactly
// once, however often it was sent. Every transaction has a message id, which
// the client generates if the caller sets none. The client resends the
// transaction with that id (after a missing answer, `unknown`, `unavailable`,
// `busy`, "no responders", or a lost connection) until it has an outcome or its
// timeout expires. A refusal that resending cannot cure is returned at once, as
// a [*RefusedError] or [*ConflictError], with everything that the answer said.
// If the timeout expires before the outcome is known, the error is an
// [*UnknownOutcomeError] with the message id. Every other error means that
// nothing was appended.
//
// A node remembers a message id as long as the log keeps its transaction, or,
// if the operator says so, for a time such as two minutes. The default of
// [Options.Timeout] is well below that.
//
// # Batches
//
// Each partition has one sender. A transaction that comes while nothing is in
// flight is sent at once. While three batches are in flight, transactions
// gather, and the next batch takes them all. No timer delays anything. A
// transaction is encoded once, when it is added to a batch, so every attempt
// sends the same bytes.
//
// Transactions that are appended to one partition one after another commit in
// that order, as long as none has to be resent. There is no other guarantee of
// order: a writer that needs one waits for the receipt, or sets
// [Request.ExpectedLast].
//
// These batches are a matter of speed: each transaction has an outcome of its
// own. Only those of an [AtomicBatch] commit together.
//
// # Sessions
//
// A [Session] numbers its transactions. They are sent in the order of their
// numbers, up to three batches at a time, and the partition accepts a number
// only after the one before it. If an attempt fails, or an answer is lost, the
// session goes back to the first transaction that it concerns and sends
// everything from there on again; the partition knows repeats by their numbers.
// With the first transaction that gets no receipt the session ends.
//
// # Following
//
// A follower combines reads and the feed by txid. While it is behind, it reads:
// each read starts when the previous one has ended and the handler's backlog is
// below [FollowOptions.BufferBytes]. Once it has caught up, it takes the packed
// feed. It reads again after a txid that is not the next one, after a
// reconnect, and when the feed is silent. So a message that is lost on the
// wire, by a slow consumer or at a change of leader, is not lost to the
// handler.
//
// The transactions of an atomic batch are passed on once all of them have come.
// A [BatchHandler] gets them in one call, so that it can apply them in one
// database transaction, and no position is between two of them.
//
// The feed is signed. A message that does not verify with the cluster's key is
// dropped and counted, and the follower reads. The client asks the cluster for
// the key unless [Options.FeedKey] contains it.
//
//	feed ──► verified? txid == next? ──► queue ──► handler, one goroutine per partition
//	          gap: read ──────►
//
// # Concurrency
//
// All methods are safe for concurrent use, except that a [Request] and a
// [Transaction] belong to one goroutine at a time. A client has one goroutine,
// one for each partition that was appended to, and two for each partition that
// is followed, in addition to nats.go's own: one per subscription, of which a
// client has two and a followed partition has two.
package client

// Reading the source.
//
// An append goes through these files:
//
//	client.go     Append: checks the request, acquires, finds the sender
//	request.go    checks a request and encodes it as a frame
//	condition.go  encodes its condition
//	limiter.go    limits what is in flight, over all partitions
//	sender.go     fills batches, sends and resends them: one sender per partition
//	batch.go      a message of several transactions, and their futures
//	atomic.go     AppendAtomic: a message whose transactions commit together
//	answer.go     handles a batch's answer (reply.go decodes it)
//	session.go    a chain of batches that are sent in order, and again from one
//	              of them on (sessionanswer.go handles their answers)
//	future.go     the outcome of one transaction
//	leader.go     what suggests that an answer is lost
//	drain.go      waits for all outcomes
//
// A follower goes through these:
//
//	follow.go       Run: follows, moves
//	deliver.go      calls the handler, with whole atomic batches, and retries
//	stream.go       merges reads and the feed into one queue
//	window.go       limits what all reads together have requested
//	feed.go         verifies the feed (feedkey.go fetches its key)
//	transaction.go  decodes transactions
//	position.go     what the handler has applied; Wait waits for it
//
// Everything else is a request with one answer:
//
//	call.go         the loop of attempts
//	info.go         partitions, high-water marks
//	asof.go         txids by time
//	history.go      whether a cluster has what another one had
//	get.go          single transactions
//	query.go        transactions by name
//	decide.go       decisions from them
//	cursor.go       cursors
//	nopartition.go  finds out that a partition does not exist
//
// transactor.go runs functions as transactions, by means of Append and a View.
// tracer.go has what a Tracer is asked for, around appends and calls of
// handlers. options.go and errors.go have what their names say.
//
// Goroutines, and what each may block on:
//
//   - watchConnection, one for each client: on changes of the connection's
//     status. When the connection is back it requests reads, and may block on
//     the connection.
//   - sender.run, one for each partition appended to: on new transactions, its
//     timer, and the connection while it publishes. It holds no lock then.
//   - Follower.run, one for each followed partition: on the stream's queue, in
//     the handler, during back-offs, and on the connection while it requests a
//     read.
//   - stream.runTimers, one for each followed partition: on its timer, on the
//     connection while it requests a read, and in OnRejected.
//   - The callbacks of subscriptions, on goroutines of nats.go: onAnswer and
//     onLeader of the client, which block on locks only, and onReadMessage and
//     onFeedMessage of a stream, which may also request a read.
//   - fetchFeedKey and fetchPartitions, while needed: on answers.
//
// Close waits for the client's own goroutines and for streams, and so for a
// handler that is running.
//
// Locks:
//
//   - Client.mu guards whether the client is closed, its senders, streams and
//     pending requests, and the fields of the latter.
//   - Client.attemptsMu guards the attempts by reply token.
//   - sender.mu guards a sender's batches, their attempts, its sessions, and
//     the fields of Future that say so.
//   - stream.mu guards a stream. Reads are published while it is held.
//   - followedPartition.mu guards how a partition is moved and canceled.
//   - The limiter, window, position and feedKey have a lock each.
//
// They are acquired in this order: sender.mu, stream.mu or
// followedPartition.mu; then those of the limiter, window, position or feedKey;
// then Client.mu or attemptsMu. No lock is held while a handler or OnRejected
// is called. sender.mu may be held while a Tracer is told the outcome of an
// append.
