package broker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// A Go service holds a log of its own: no port, no other process.
func Example_embedded() {
	dir, err := os.MkdirTemp("", "cantus")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	node, err := broker.Open(context.Background(), dir, broker.Options{Partitions: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	nc, err := node.Conn()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	withdraw := func(payload, appliedUpTo string) subjects.Reply {
		m := nats.NewMsg("cantus.append.0")
		m.Data = []byte(payload)
		m.Header.Set(subjects.HeaderWriteLock, "account.42")
		m.Header.Set(subjects.HeaderHighWaterMark, appliedUpTo)
		answer, err := nc.RequestMsg(m, 10*time.Second)
		if err != nil {
			log.Fatal(err)
		}
		var reply subjects.Reply
		if err := json.Unmarshal(answer.Data, &reply); err != nil {
			log.Fatal(err)
		}
		return reply
	}
	fmt.Println("appended as", withdraw("-10", "0").Txid)
	refused := withdraw("-20", "0").Error // computed before the first was known
	fmt.Println(refused.Reason, "on", refused.Lock, "with", refused.Txid)
	fmt.Println("appended as", withdraw("-20", "1").Txid)

	sub, err := nc.SubscribeSync("history")
	if err != nil {
		log.Fatal(err)
	}
	if err := nc.PublishRequest("cantus.read.0", "history", []byte(`{"from":1}`)); err != nil {
		log.Fatal(err)
	}
	for {
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil {
			log.Fatal(err)
		}
		if m.Header.Get("Status") == subjects.StatusEnd {
			break
		}
		fmt.Printf("%s: %s\n", m.Header.Get(subjects.HeaderTxid), m.Data)
	}

	// Output:
	// appended as 1
	// conflict on account.42 with 1
	// appended as 2
	// 1: -10
	// 2: -20
}
