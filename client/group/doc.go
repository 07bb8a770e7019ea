// Package group shares partitions among the members of a consumer group. Each
// partition is handled by one member at a time, and is taken over when that
// member leaves or dies.
//
//	err = group.Join(ctx, c, "mailer", func(_ context.Context, tx *client.Transaction) error {
//		fmt.Printf("mail about transaction %d: %s\n", tx.Txid, tx.Payload)
//		return nil
//	}, group.Options{Lease: time.Second})
//
// Its nouns:
//
//   - A member is a process that joined a group by name with [Join].
//   - A lease is the right to handle a partition, or to count as a member.
//   - A position is how far the group has handled a partition: a
//     [client.Cursor].
//
// It needs only cursors, which any client of the log can read and set. There is
// no coordinator, and members exchange no messages.
//
// # Guarantees
//
// Every transaction is handled at least once, in txid order within a partition.
// The group's position moves only by compare-and-set, by a member that has
// handled all transactions in between: none is skipped, and a member that has
// lost its partition without noticing cannot move the position back or past
// another member's. Transactions after the position are handled again after a
// crash: up to [Options.CommitInterval] of work. The position is never between
// two transactions of an atomic batch: all of it is handled again.
//
// Two members do not run the handler of a partition at the same time if
//
//   - their clocks run at the same rate, within a tenth (the times that they
//     show do not matter), and
//   - a handler returns soon after its ctx ends, which happens when the lease
//     expires.
//
// A process that is suspended inside its handler for longer than a lease breaks
// the second condition. Its handler may then run beside the new one, once, but
// only one of them can move the position. For more than that, store the txid
// together with the effects, as package sqlview does.
//
// # Concurrency
//
// The handler is called concurrently for different partitions. [Join] runs the
// member's rounds on the caller's goroutine, on which it also calls OnChange.
// Each partition that the member handles has the goroutines of a
// [client.Follower], and one that commits the position.
//
// # How it works
//
// A lease is a cursor of which only the time matters: every set gives it a new
// time, by the leader's clock, that no other set has. The lease is free if the
// cursor does not exist, or if its time has not changed for the duration of a
// lease. To claim a lease, a member sets it, and finds it with that same time a
// full duration later. To hold it, the member must find it with its own time at
// least every third of the duration. A member that fails to do so stops its
// handler when nine tenths of the duration have passed since it last asked and
// found its own time. So the old holder has stopped before the new one starts:
// the claim came after the old holder last found the lease its own. A partition
// of a member that died is handled again after two durations, one of a member
// that left after one.
//
// A member first claims one of [Options.MaxMembers] leases on the first
// partition that has a transaction, the coordination partition. Every member
// reads all of them. If n are taken, the i-th member wants the partitions whose
// index modulo n is i. It releases others, and claims those when they are free.
// While there are other members, it sets its own lease every quarter of the
// duration, so that they see it alive. It does not set the leases of
// partitions, nor its own while it is alone, because each set is an entry in
// the log. So the lease of a partition that is held looks free, and only the
// member to which the partition is assigned claims it. Members that see
// different numbers for a while take partitions from each other, never handle
// one at the same time, and are stable after a duration or two.
//
// The cursors of a group g are: g for the position, g-lease for the lease of a
// partition, g-member-0 and so on for the members. A partition without a
// transaction has no lease and needs none.
package group
