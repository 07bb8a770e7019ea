// Package sim runs the nodes of a cluster in one process and in virtual time,
// on disks and a network that fail as a schedule says. It is for tests in a
// bubble of package testing/synctest.
//
// A [Cluster] has nodes. A [Node] is a machine: a directory, a disk that loses
// what was not synced when the power fails, and a host of package simnet. An
// [App] runs a process on it: [Replicas] runs one replica of a group, and the
// simulation of whole nodes in package broker everything that a node has. A
// [Schedule] is a list of faults and operations, each at a time. [NewSchedule]
// makes one from a seed, and it prints as a script that can be run again, whole
// or with lines left out.
//
// The seed determines the schedule, the latencies of the network and of the
// disks, and what a power cut leaves of what was not synced. It does not
// determine in which order the goroutines of a bubble run that are ready at the
// same moment, so two runs of a seed may differ.
//
// Badger's files are real ones, in a temporary directory, and survive a power
// cut as they are: only the journal is on a simulated disk.
//
// A bubble's time stands still while a goroutine waits for a mutex. So nothing
// that holds a mutex may wait for something that takes time here. If a run
// hangs, look for that in the goroutines' stacks.
package sim
