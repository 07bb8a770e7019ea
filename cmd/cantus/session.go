package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/cantuslog/cantus/subjects"
)

// session describes the transaction's number in its session for people.
func (t *transaction) session() string { return fmt.Sprintf("%s#%d", t.Session, t.SessionSeq) }

// setSessionSeq sets the number in a session from the value of a header.
func (t *transaction) setSessionSeq(value string) (err error) {
	if t.SessionSeq, err = strconv.ParseUint(value, 10, 64); err != nil {
		return fmt.Errorf("transaction %d: header %s is %q", t.Txid, subjects.HeaderSessionSeq, value)
	}
	return nil
}

// checkSession returns an error unless the session of a line can be one.
func (t *transaction) checkSession() error {
	switch {
	case t.Session == "" && t.SessionSeq == 0 && t.Move != "":
		return errors.New("it has move and no session: a transaction moves a cursor of its session")
	case t.Session == "" && t.SessionSeq == 0:
		return nil
	case t.Session == "" || t.SessionSeq == 0:
		return errors.New("it has one of session and session_seq: a session has a name, and its transactions have numbers from 1 on")
	case t.MsgID != "":
		return errors.New("it has both msg_id and session: the number in a session is the message id")
	}
	if t.Move != "" {
		if _, err := subjects.ParseMove(t.Move); err != nil {
			return plain(err)
		}
	}
	return plain(subjects.CheckSession(t.Session))
}

// checkSession refuses flags of a session that cannot be right.
func (c *appendCmd) checkSession() error {
	switch hasSeq := c.SessionSeq != nil; {
	case c.Session == "" && !hasSeq && c.Move != "":
		return usagef("--move moves a cursor of a session: name that by --session")
	case c.Session == "" && !hasSeq:
		return nil
	case c.Session == "":
		return usagef("--session-seq is a number in a session: name that by --session")
	case !hasSeq:
		return usagef("--session needs --session-seq N, the transaction's number in the session: 1 for the first one")
	case c.ID != "":
		return usagef("give either --id or --session: the number in a session is the message id")
	case c.HWM == nil && *c.SessionSeq == 1:
		return usagef("--session-seq 1 needs --hwm TXID, the txid up to which you had applied the partition: 0 if it was empty")
	}
	if err := subjects.CheckSession(c.Session); err != nil {
		return usagef("--session: %w", plain(err))
	}
	if c.Move != "" {
		if _, err := subjects.ParseMove(c.Move); err != nil {
			return usagef("--move: %w", plain(err))
		}
	}
	return nil
}
