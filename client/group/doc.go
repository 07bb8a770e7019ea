// Package group shares partitions among the members of a consumer group: each
// partition is handled by one member at a time, and taken over when a member
// goes.
//
//	err = group.Join(ctx, c, "mailer", func(_ context.Context, tx *client.Transaction) error {
//		fmt.Printf("mail about order %d: %s\n", tx.Txid, tx.Payload)
//		return nil
//	}, group.Options{Lease: time.Second})
//
// Its nouns:
//
//   - A member, a process that joined a group by name with [Join].
//   - A lease, the right to handle a partition, or to count as a member.
//   - A position, how far the group has handled a partition: a [client.Cursor].
//
// It needs nothing but cursors, which any client of the log can read and set.
// There is no coordinator and no message between members.
//
// # Guarantees
//
// Every transaction is handled at least once, in txid order within a partition.
// The group's position is moved by compare-and-set alone, by a member that has
// handled all transactions between: none is left out, and a member that lost
// its partition unknowingly cannot move it back or over another's. What was
// handled behind the position is handled again after a crash: up to
// [Options.CommitInterval] of work.
//
// Two members do not run the handler of a partition at one time, given that
//
//   - their clocks run at the same rate, within a tenth (what time they show
//     does not matter), and
//   - a handler returns soon after its ctx ends, which it does when the lease
//     ran out.
//
// A process that is stopped in the middle of its handler for longer than a
// lease breaks the second; its handler then may run beside the new one's, once,
// and the position still has only one of them. Who needs more keeps the txid
// with the effects, as package sqlview does.
//
// # How
//
// A lease is a cursor whose time counts, not its position: every set gives it a
// new time, by the leader's clock, which no other set has. It is free when it
// does not exist, or kept its time for a whole lease. To claim it is to set it,
// and to find it with that very time a whole lease later. To hold it is to find
// it with one's own time, at least every third of a lease; a member that could not
// stops its handler when nine tenths of a lease have passed since it last asked
// and found it so. So the old holder has stopped before the new one begins: the new
// one's claim came after the old one last found the lease its own. A partition of a
// member that died is handled again after two leases, one of a member that left
// after one.
//
// A member first takes one of [Options.MaxMembers] leases on the first partition
// that has any transaction. Everybody looks at them: with n of them taken, the
// i-th member wants the partitions whose number modulo n is i, gives up others,
// and claims those when they are free. While there are other members it sets its
// own one every quarter of a lease, so that they see it live. It does not set the
// leases of partitions, nor its own while it is alone: each set is an entry of the
// log. So the lease of a partition that is quietly held looks free, and only the
// member that is to have it claims it. Members that see different numbers for a while
// take partitions from each other, never handle one together, and are at rest
// after a lease or two.
//
// The cursors are, for a group g: g is the position, g-lease the lease of a
// partition, g-member-0 and so on the members. A partition without any
// transaction has no lease and needs none.
package group
