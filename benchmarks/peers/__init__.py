"""Other projects' searches on the same networks and images, each brought through our export and timing.

Every peer runs in an environment of its own (``environments``), is given an ``Assignment`` and leaves an ``Answer``;
what it decided is then put into our plans (``transfer``), exported, timed in one run beside what Trimtab finds at the
same measured latency or in the same packed bytes (``ours``), and read off on the test split (``results``).
"""
