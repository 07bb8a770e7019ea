package sqlview_test

import (
	"testing"

	"github.com/cantuslog/cantus/client/internal/examples"
)

func TestMain(m *testing.M) { examples.Main(m) }

// url is the address of a node, such as nats://127.0.0.1:4222.
var url = examples.URL
