package journal

// Enqueue returns once ops are in the queue, and wait returns what Commit
// would.
func (j *Journal) Enqueue(ops []Op) (wait func() error) { return j.submit(ops) }
