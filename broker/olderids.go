package broker

// loadOlderIDs prepares for the calls of unknownID for some requests.
func (c *certifier) loadOlderIDs(rs []*request) {
	if first, through := c.table.OlderIDs(); through < first {
		return
	}
	c.ids = c.ids[:0]
	for _, r := range rs {
		if len(r.tx.MsgID) > 0 {
			c.ids = append(c.ids, text(r.tx.MsgID))
		}
	}
	c.loadIDs(c.ids)
	clear(c.ids) // they are parts of messages
}

// unknownID returns the transaction up to which the log has to be searched for
// a request's message id, 0 if it need not be.
func (c *certifier) unknownID(r *request) (through uint64) {
	if len(r.tx.MsgID) == 0 {
		return 0
	}
	first, through := c.table.OlderIDs()
	if through < first {
		return 0
	}
	if may, from, to := c.mayHaveID(text(r.tx.MsgID)); !may && from <= first && to >= through {
		return 0
	}
	return c.table.UnknownID(&r.cert)
}
