package natslink

import (
	"bytes"
)

// ControlLineMargin is how many bytes the first line of an answer has beside its
// subject.
const ControlLineMargin = 32

// limits are the server's for what a connection sends. It closes a connection that
// exceeds them, and with it everything that the connection serves.
type limits struct {
	payload int // bytes of a message, headers included; 0 if it is not known yet
	control int // bytes of a command's first line
}

// acceptable returns commands without those that the server does not accept.
func (l *Link) acceptable(commands []byte) []byte {
	now := limits{payload: int(l.maxPayload.Load()), control: int(l.maxReply.Load()) + ControlLineMargin}
	kept, dropped := now.keep(commands)
	if dropped > 0 {
		l.log.Error("messages are larger than the NATS server takes, and were not sent",
			"link", l.opts.Name, "messages", dropped, "max_payload", now.payload, "max_control_line", now.control)
	}
	return kept
}

// keep returns commands without the messages that are too large, and their number.
// It is the last line of defense: code that makes messages that can become too
// large refuses them in time, with a reason.
func (m limits) keep(commands []byte) (kept []byte, dropped int) {
	if m.control <= ControlLineMargin { // not known yet
		return commands, 0
	}
	if len(commands) <= m.control && (m.payload == 0 || len(commands) <= m.payload) {
		return commands, 0
	}
	start := 0 // of what is to be kept, and not yet in kept
	for at := 0; at < len(commands); {
		end := at + bytes.IndexByte(commands[at:], '\n') + 1
		if end == at {
			break // not a whole command
		}
		line := bytes.TrimRight(commands[at:end], "\r\n")
		next, size := end, 0
		if bytes.HasPrefix(line, []byte("PUB ")) || bytes.HasPrefix(line, []byte("HPUB ")) {
			size, _ = parseSize(line[bytes.LastIndexByte(line, ' ')+1:])
			next = end + size + len("\r\n")
		}
		if len(line) > m.control || m.payload > 0 && size > m.payload {
			kept = append(kept, commands[start:at]...)
			start = next
			dropped++
		}
		at = next
	}
	if dropped == 0 {
		return commands, 0
	}
	return append(kept, commands[min(start, len(commands)):]...), dropped
}
